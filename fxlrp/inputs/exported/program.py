"""A strict reading of the JSON in an exported program.

torch's own schema (torch._export.serde.schema) says what such a file may hold.  Here a file is read against it: types
exactly as stated, no unknown keys, and of the kinds of value only those that a network of operators consists of.  What
comes out is built anew from what was understood, so torch never sees a part of the file that was not.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import keyword
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx
from torch._export.serde import schema
from torch._export.serde.serialize import deserialize_scalar_type
from torch._export.serde.union import _Union

from fxlrp.inputs.exported.expressions import SYMBOL, check_expression
from fxlrp.inputs.exported.operators import check_call
from fxlrp.inputs.limits import last_number, parse_json

LARGEST = 2**31
"""What an integer may be: a size, an axis, a stride."""
LONGEST_JSON = 2**25
"""Bytes of a program in JSON; that of a network of a thousand operators takes one to two million."""
ENDLESS = (2**63 - 1, -(2**63))
"""What slices say for "to the end"."""
LONGEST = 2**16
"""How long a text or a list may be, but for the lists that grow with the network."""
DEEPEST = 64
"""How many levels of lists and dicts may stand in each other."""

_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset((*keyword.kwlist, "self", "torch", "math", "_operator", "operator", "inf", "nan", "device"))

# Of the kinds of value that torch's schema knows, those that networks consist of; of other unions all.
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


class Refused(ValueError):
    """The file holds something that no network needs; the message names it."""


def read_program(data: bytes) -> dict[str, Any]:
    """The program in `models/model.json`, rebuilt.  Raises ValueError for anything but a network of operators."""
    return _clean(schema.ExportedProgram, parse_json(data, "the program", LONGEST_JSON), "program", 0)


def read_payload(data: bytes) -> dict[str, dict[str, Any]]:
    """Which tensor of which file each weight (or constant) is, by name.

    Raises ValueError if one is more than raw numbers: a pickle, say.
    """
    return _clean(schema.PayloadConfig, parse_json(data, "the list of weights", LONGEST_JSON), "weights", 0)["config"]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, vars(schema))


def _clean(kind: Any, value: Any, where: str, depth: int) -> Any:
    """`value` rebuilt as the `kind` of thing it should be.  Raises Refused, saying where, if it is none."""
    kind = getattr(schema, kind) if isinstance(kind, str) else kind
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if depth > DEEPEST:
        raise Refused(f"{where} nested too deeply")
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _clean(next(k for k in inside if k is not type(None)), value, where, depth)
    if origin is list:
        _expect(value, list, where)
        _short(value, where)
        return [_clean(inside[0], v, where, depth + 1) for v in value]
    if origin is dict:
        _expect(value, dict, where)
        _short(value, where)
        return {_key(k, where): _clean(inside[1], v, where, depth + 1) for k, v in value.items()}
    if issubclass(kind, enum.IntEnum):
        _expect(value, int, where)
        if value not in set(kind):
            raise Refused(f"{where} {value}")
        return value
    if issubclass(kind, _Union) or dataclasses.is_dataclass(kind):
        found = _fields(kind, value, where, depth)
        return _CHECKS.get(kind.__name__, lambda found: found)(found)
    return _plain(kind, value, where)


def _fields(kind: Any, value: Any, where: str, depth: int) -> dict[str, Any]:
    _expect(value, dict, where)
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


def _expect(value: Any, kind: type, where: str) -> None:
    if type(value) is not kind:
        raise Refused(f"{where} that is {type(value).__name__}, not {kind.__name__}")


def _short(value: Any, where: str) -> None:
    if len(value) > (2**20 if where in _GROWING else LONGEST):
        raise Refused(f"{where} of length {len(value)}")


def _key(key: str, where: str) -> str:
    if not _PATH.fullmatch(key) and where not in ("metadata", "config"):
        raise Refused(f"a name {key[:80]!r}")
    return key


def _plain(kind: type, value: Any, where: str) -> Any:
    if kind is float:
        if value in ("Infinity", "-Infinity", "NaN") or (type(value) is int and abs(value) < 2**53):
            return value
        _expect(value, float, where)
        if not math.isfinite(value):
            raise Refused(f"{where} {value}")
        return value
    _expect(value, kind, where)
    if kind is int and abs(value) > LARGEST and value not in ENDLESS:
        raise Refused(f"{where} {value}")
    if kind is str:
        _short(value, where)
        if where not in _TEXTS and value and not _PATH.fullmatch(value):
            raise Refused(f"{where} {value[:80]!r}")
    return value


_TEXTS = frozenset(
    ("expr_str", "target", "metadata", "in_spec", "out_spec", "torch_version", "as_string", "path_name", "type")
)
"""The fields whose text is checked below; any other holds a name."""


def _variable(found: dict[str, Any]) -> dict[str, Any]:
    """Names become variables of the code that torch.fx writes."""
    for key in ("name", "as_name"):
        name = found.get(key)
        if name is not None and (not _VARIABLE.fullmatch(name) or name in _RESERVED):
            raise Refused(f"a variable {name!r}")
    return found


_EMPTY = fx.GraphModule({}, fx.Graph())


def _place(found: dict[str, Any]) -> dict[str, Any]:
    """Weights are put where their names say, attribute by attribute: not into what a module has already."""
    for key in ("parameter_name", "buffer_name", "tensor_constant_name"):
        for part in found.get(key, "").split("."):
            if hasattr(_EMPTY, part) or part.startswith("__"):
                raise Refused(f"a weight named {found[key][:80]!r}")
    return found


def _device(found: dict[str, Any]) -> dict[str, Any]:
    if found["type"] not in ("cpu", "cuda") or not 0 <= (found.get("index") or 0) < 64:
        raise Refused(f"a device {found['type'][:80]!r}")
    return found


def _tensor(found: dict[str, Any]) -> dict[str, Any]:
    if found["layout"] != schema.Layout.Strided or found["dtype"] == schema.ScalarType.UNKNOWN:
        raise Refused("a tensor of another layout than rows and columns")
    return found


def _expression(found: dict[str, Any]) -> dict[str, Any]:
    check_expression(found["expr_str"])
    if found.get("hint") is None:
        raise Refused(f"a size without an example, {found['expr_str'][:80]!r}")
    return found


def _argument(found: dict[str, Any]) -> dict[str, Any]:
    if not found.get("as_string", "").isprintable():
        raise Refused(f"a text {found['as_string'][:80]!r}")
    if found.get("as_none") is False:
        raise Refused("a None that is something")
    if len(found.get("as_string", "")) > 200:
        raise Refused(f"a text of {len(found['as_string'])} characters")
    if found.get("as_layout", schema.Layout.Strided) != schema.Layout.Strided:
        raise Refused("a tensor of another layout than rows and columns")
    return found


def _node(found: dict[str, Any]) -> dict[str, Any]:
    check_call(found)
    kept = {key: text for key, text in found["metadata"].items() if key in ("stack_trace", "nn_module_stack")}
    for key, text in kept.items():
        if not all(line.isprintable() for line in text.split("\n")):
            raise Refused(f"{key} that cannot be printed")
    return _variable({**found, "metadata": kept})


def _graph(found: dict[str, Any]) -> dict[str, Any]:
    """Every value that is used was computed before, once."""
    known: set[str] = set()

    def define(args: list[dict[str, Any]]) -> None:
        for name in names_in(args):
            if name in known:
                raise Refused(f"two values {name!r}")
            known.add(name)

    define(found["inputs"])
    for node in found["nodes"]:
        if unknown := set(names_in([i["arg"] for i in node["inputs"]])) - known:
            raise Refused(f"a value {min(unknown)!r} that nothing computes")
        define(node["outputs"])
    if unknown := set(names_in(found["outputs"])) - known:
        raise Refused(f"an output {min(unknown)!r} that nothing computes")
    return found


def names_in(args: Any) -> list[str]:
    """The values of the graph that arguments name."""
    if isinstance(args, list):
        return [name for arg in args for name in names_in(arg)]
    if not isinstance(args, dict):
        return []
    if "as_graph" in args:  # a graph of its own, whose values are its own
        return []
    own = [args[key] for key in ("name", "as_name") if isinstance(args.get(key), str)]
    return own + [name for value in args.values() for name in names_in(value)]


def _signature(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "in_spec": _tree(found["in_spec"]), "out_spec": _tree(found["out_spec"])}


def _tree(text: str) -> str:
    """How inputs or outputs are nested, in lists, tuples and dicts; other containers with names become dicts."""
    if not text:
        return text
    version, spec = _pair(parse_json(text.encode(), "a container"))

    def plain(spec: Any, depth: int) -> dict[str, Any]:
        if depth > DEEPEST or type(spec) is not dict or spec.keys() != {"type", "context", "children_spec"}:
            raise Refused("a container of another kind")
        kind, context, children = spec["type"], spec["context"], spec["children_spec"]
        _expect(children, list, "a container")
        inner = [plain(child, depth + 1) for child in children]
        if kind is None:
            if context is not None or inner:
                raise Refused("a leaf with something in it")
            return {"type": None, "context": None, "children_spec": []}
        if kind in ("builtins.list", "builtins.tuple"):
            if context not in ("null", None):
                raise Refused(f"a {kind} with {str(context)[:80]!r}")
            return {"type": kind, "context": "null", "children_spec": inner}
        if kind not in ("builtins.dict", "collections.OrderedDict") and not re.fullmatch(
            r"(transformers|diffusers)(\.\w+)+", str(kind)
        ):
            raise Refused(f"a container of type {str(kind)[:80]!r}")
        _expect(context, str, "the keys of a container")
        keys = parse_json(context.encode(), "the keys of a container")
        _expect(keys, list, "the keys of a container")
        if len(keys) != len(inner) or not all(
            (type(k) is str and _PATH.fullmatch(k)) or (type(k) is int and abs(k) < LARGEST) for k in keys
        ):
            raise Refused("a container with odd keys")
        return {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": inner}

    return json.dumps([version, plain(spec, 0)])


def _pair(value: Any) -> tuple[int, Any]:
    if type(value) is not list or len(value) != 2 or type(value[0]) is not int:
        raise Refused("a container of another kind")
    return value[0], value[1]


def _payload(found: dict[str, Any]) -> dict[str, Any]:
    if found["use_pickle"]:
        raise Refused("a pickled tensor")
    if found["tensor_meta"] is None or not re.fullmatch(r"(weight|tensor)_\d{1,9}", found["path_name"]):
        raise Refused(f"a weight in {found['path_name'][:80]!r}")
    return found


def _program(found: dict[str, Any]) -> dict[str, Any]:
    if not set(found.get("verifiers", [])) <= {"ATEN", "TRAINING"}:
        raise Refused(f"another kind of program, {found['verifiers']}")
    if not re.fullmatch(r"[\w.+<=-]{0,80}", found.get("torch_version", "")):
        raise Refused("a version of torch that is none")
    if not all(SYMBOL.fullmatch(symbol) for symbol in found["range_constraints"]):
        raise Refused("sizes that depend on values")
    module = found["graph_module"]
    if not module["module_call_graph"] or module["module_call_graph"][0]["fqn"]:
        raise Refused("no signature of the network")
    module["module_call_graph"] = module["module_call_graph"][:1]  # those of its parts are not used
    return found


_CHECKS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "TensorArgument": _variable,
    "SymIntArgument": _variable,
    "SymFloatArgument": _variable,
    "SymBoolArgument": _variable,
    "GraphArgument": _variable,
    "InputToConstantInputSpec": _variable,
    **dict.fromkeys(("InputToParameterSpec", "InputToBufferSpec", "InputToTensorConstantSpec"), _place),
    **dict.fromkeys(("BufferMutationSpec", "UserInputMutationSpec"), _place),
    "Argument": _argument,
    "Device": _device,
    "TensorMeta": _tensor,
    "SymExpr": _expression,
    "Node": _node,
    "Graph": _graph,
    "ModuleCallSignature": _signature,
    "PayloadMeta": _payload,
    "ExportedProgram": _program,
}


def check_within(meta: dict[str, Any], size: int) -> None:
    """Check that a tensor as stated lies within a file of `size` bytes.  Raises ValueError if it does not."""
    count, rest = divmod(size, deserialize_scalar_type(meta["dtype"]).itemsize)
    sizes, strides = ([_integer(n) for n in meta[key]] for key in ("sizes", "strides"))
    first = _integer(meta["storage_offset"])
    if rest or len(sizes) != len(strides) or min((*sizes, *strides, first), default=0) < 0:
        raise Refused("a weight of odd sizes")
    if last_number(sizes, strides, first) >= count:
        raise Refused("a weight that is larger than its file")
    if math.prod(sizes) > count:
        raise Refused("a weight that repeats its numbers")


def _integer(size: dict[str, Any]) -> int:
    if size.keys() != {"as_int"}:
        raise Refused("a weight without a fixed size")
    return size["as_int"]
