"""Read the JSON in an exported program strictly.

torch's own schema (torch._export.serde.schema) says what such a file may hold.  Here a file is read against it: types
exactly as stated, no unknown keys, and of the kinds of value only those that a network of operators consists of;
`checks` says what else a record must fulfil.  What comes out is built anew from what was understood, so torch never
sees a part of the file that was not.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from fxlrp.inputs.exported.checks import CHECKS, DEEPEST, LARGEST, PATH, Refused, expect
from fxlrp.inputs.limits import parse_json

LONGEST_JSON = 2**25
"""The most bytes of a program in JSON; that of a network of a thousand operators takes one to two million."""
ENDLESS = (2**63 - 1, -(2**63))
"""What slices say for "to the end"."""
LONGEST = 2**16
"""How long a text or a list may be, but for the lists that grow with the network."""

# The kinds of value that networks consist of, of those that torch's schema knows; of unions not named here, all.
_KINDS = {
    "Argument": frozenset(
        (
            *("as_none", "as_tensor", "as_tensors", "as_optional_tensor", "as_optional_tensors", "as_int", "as_ints"),
            *("as_float", "as_floats", "as_bool", "as_bools", "as_complex", "as_string", "as_scalar_type"),
            *("as_memory_format", "as_layout", "as_device", "as_graph", "as_sym_int", "as_sym_ints", "as_sym_float"),
            *("as_sym_floats", "as_sym_bool", "as_sym_bools"),
        )
    ),
    "InputSpec": frozenset(("user_input", "parameter", "buffer", "tensor_constant", "constant_input")),
    "OutputSpec": frozenset(("user_output", "buffer_mutation", "user_input_mutation")),
}

# What a network can do without is not read but replaced: Python code, records of how the program came about.
_REPLACED: dict[str, dict[str, Callable[[], Any]]] = {
    "ExportedProgram": {"guards_code": list},
    "GraphModule": {"metadata": dict, "treespec_namedtuple_fields": dict},
    "Graph": {"custom_obj_values": dict},
}
_GROWING = frozenset(("nodes", "inputs", "outputs", "input_specs", "output_specs", "tensor_values", "sym_int_values"))
_TEXTS = frozenset(
    ("expr_str", "target", "metadata", "in_spec", "out_spec", "torch_version", "as_string", "path_name", "type")
)
"""The fields whose text `checks` looks at; any other holds a name."""


def read_program(data: bytes) -> dict[str, Any]:
    """Read the program in `models/model.json`.  Raises ValueError for anything but a network of operators."""
    return _clean(schema.ExportedProgram, parse_json(data, "the program", LONGEST_JSON), "program", 0)


def read_payload(data: bytes) -> dict[str, dict[str, Any]]:
    """Read which tensor of which file each weight (or constant) is, by name.

    Raises ValueError if one is more than raw numbers: a pickle, say.
    """
    return _clean(schema.PayloadConfig, parse_json(data, "the list of weights", LONGEST_JSON), "weights", 0)["config"]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of the fields of a kind of record."""
    return typing.get_type_hints(kind, vars(schema))


def _clean(kind: Any, value: Any, where: str, depth: int) -> Any:
    """Rebuild a value as the kind of thing it should be.  Raises Refused, saying where, if it is none.

    kind: a type, or the name of a kind of record.  where: the name of the field that holds the value.
    """
    kind = getattr(schema, kind) if isinstance(kind, str) else kind
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if depth > DEEPEST:
        raise Refused(f"{where} nested too deeply")
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _clean(next(k for k in inside if k is not type(None)), value, where, depth)
    if origin is list:
        expect(value, list, where)
        _short(value, where)
        return [_clean(inside[0], v, where, depth + 1) for v in value]
    if origin is dict:
        expect(value, dict, where)
        _short(value, where)
        return {_key(k, where): _clean(inside[1], v, where, depth + 1) for k, v in value.items()}
    if issubclass(kind, enum.IntEnum):
        expect(value, int, where)
        if value not in set(kind):
            raise Refused(f"{where} {value}")
        return value
    if issubclass(kind, _Union) or dataclasses.is_dataclass(kind):
        record = _fields(kind, value, where, depth)
        return CHECKS[kind.__name__](record) if kind.__name__ in CHECKS else record
    return _plain(kind, value, where)


def _fields(kind: Any, value: Any, where: str, depth: int) -> dict[str, Any]:
    """Rebuild the fields of a record, or the one of a union.  Raises Refused for missing and unknown ones."""
    expect(value, dict, where)
    hints, replaced = _hints(kind), _REPLACED.get(kind.__name__, {})
    if unknown := value.keys() - hints.keys():
        raise Refused(f"{kind.__name__} with {min(unknown)[:80]!r}")
    if issubclass(kind, _Union):
        if len(value) != 1 or not value.keys() <= _KINDS.get(kind.__name__, hints.keys()):
            raise Refused(f"{where} {', '.join(sorted(value))[:80]!r}")
    else:
        needed = {f.name for f in dataclasses.fields(kind) if _required(f)}
        if missing := needed - value.keys():
            raise Refused(f"{kind.__name__} without {min(missing)}")
    return {
        name: replaced[name]() if name in replaced else _clean(hints[name], inner, name, depth + 1)
        for name, inner in value.items()
    }


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _short(value: Any, where: str) -> None:
    """Raise Refused for a text, list or dict that is too long."""
    if len(value) > (2**20 if where in _GROWING else LONGEST):
        raise Refused(f"{where} of length {len(value)}")


def _key(key: str, where: str) -> str:
    """Return the key of a dict.  Raises Refused if it is no name where names are wanted."""
    if not PATH.fullmatch(key) and where not in ("metadata", "config"):
        raise Refused(f"a name {key[:80]!r}")
    return key


def _plain(kind: type, value: Any, where: str) -> Any:
    """Return a number, text or truth value.  Raises Refused for another type, and for odd numbers and names."""
    if kind is float:
        if value in ("Infinity", "-Infinity", "NaN") or (type(value) is int and abs(value) < 2**53):
            return value
        expect(value, float, where)
        if not math.isfinite(value):
            raise Refused(f"{where} {value}")
        return value
    expect(value, kind, where)
    if kind is int and abs(value) > LARGEST and value not in ENDLESS:
        raise Refused(f"{where} {value}")
    if kind is str:
        _short(value, where)
        if where not in _TEXTS and value and not PATH.fullmatch(value):
            raise Refused(f"{where} {value[:80]!r}")
    return value
