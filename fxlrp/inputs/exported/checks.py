"""Check the records in an exported program beyond the types of their fields, each kind in its own way.

Each check returns the record as torch will see it, and raises ValueError for what no network needs.
"""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx
from torch._export.serde import schema
from torch._export.serde.serialize import deserialize_scalar_type

from fxlrp.inputs.exported.expressions import SYMBOL, check_expression
from fxlrp.inputs.exported.operators import check_call
from fxlrp.inputs.limits import last_number, parse_json

LARGEST = 2**31
"""The largest integer: a size, an axis, a stride."""
DEEPEST = 64
"""The most levels of lists and dicts in each other."""

PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset((*keyword.kwlist, "self", "torch", "math", "_operator", "operator", "inf", "nan", "device"))


class Refused(ValueError):
    """Raised when a file holds something that no network needs; the message names it."""


def expect(value: Any, kind: type, where: str) -> None:
    """Raise Refused, saying where, if a value is not exactly of a type."""
    if type(value) is not kind:
        raise Refused(f"{where} that is {type(value).__name__}, not {kind.__name__}")


def _check_variable(record: dict[str, Any]) -> dict[str, Any]:
    """Check names that become variables of the code that torch.fx writes."""
    for key in ("name", "as_name"):
        name = record.get(key)
        if name is not None and (not _VARIABLE.fullmatch(name) or name in _RESERVED):
            raise Refused(f"a variable {name!r}")
    return record


_EMPTY = fx.GraphModule({}, fx.Graph())


def _check_place(record: dict[str, Any]) -> dict[str, Any]:
    """Check that a weight goes nowhere else than its name says: not into an attribute that a module has already."""
    for key in ("parameter_name", "buffer_name", "tensor_constant_name"):
        for part in record.get(key, "").split("."):
            if hasattr(_EMPTY, part) or part.startswith("__"):
                raise Refused(f"a weight named {record[key][:80]!r}")
    return record


def _check_device(record: dict[str, Any]) -> dict[str, Any]:
    """Check that a device is a CPU or a GPU of a plausible number."""
    if record["type"] not in ("cpu", "cuda") or not 0 <= (record.get("index") or 0) < 64:
        raise Refused(f"a device {record['type'][:80]!r}")
    return record


def _check_tensor(record: dict[str, Any]) -> dict[str, Any]:
    """Check that a tensor is dense, of a known type of numbers."""
    if record["layout"] != schema.Layout.Strided or record["dtype"] == schema.ScalarType.UNKNOWN:
        raise Refused("a tensor of another layout than rows and columns")
    return record


def _check_expression(record: dict[str, Any]) -> dict[str, Any]:
    """Check that a symbolic size is arithmetic, and comes with an example."""
    check_expression(record["expr_str"])
    if record.get("hint") is None:
        raise Refused(f"a size without an example, {record['expr_str'][:80]!r}")
    return record


def _check_argument(record: dict[str, Any]) -> dict[str, Any]:
    """Check that an argument is no odd text, None or layout."""
    if not record.get("as_string", "").isprintable():
        raise Refused(f"a text {record['as_string'][:80]!r}")
    if record.get("as_none") is False:
        raise Refused("a None that is something")
    if len(record.get("as_string", "")) > 200:
        raise Refused(f"a text of {len(record['as_string'])} characters")
    if record.get("as_layout", schema.Layout.Strided) != schema.Layout.Strided:
        raise Refused("a tensor of another layout than rows and columns")
    return record


def _check_node(record: dict[str, Any]) -> dict[str, Any]:
    """Check what a node calls, and keep of its metadata only where it came from."""
    check_call(record)
    kept = {key: text for key, text in record["metadata"].items() if key in ("stack_trace", "nn_module_stack")}
    for key, text in kept.items():
        if not all(line.isprintable() for line in text.split("\n")):
            raise Refused(f"{key} that cannot be printed")
    return _check_variable({**record, "metadata": kept})


def _check_graph(record: dict[str, Any]) -> dict[str, Any]:
    """Check that every value is computed once, and before it is used."""
    computed: set[str] = set()

    def define(args: list[dict[str, Any]]) -> None:
        for name in names_in(args):
            if name in computed:
                raise Refused(f"two values {name!r}")
            computed.add(name)

    define(record["inputs"])
    for node in record["nodes"]:
        if unknown := set(names_in([i["arg"] for i in node["inputs"]])) - computed:
            raise Refused(f"a value {min(unknown)!r} that nothing computes")
        define(node["outputs"])
    if unknown := set(names_in(record["outputs"])) - computed:
        raise Refused(f"an output {min(unknown)!r} that nothing computes")
    return record


def names_in(args: Any) -> list[str]:
    """Return the values of the graph that arguments name."""
    if isinstance(args, list):
        return [name for arg in args for name in names_in(arg)]
    if not isinstance(args, dict):
        return []
    if "as_graph" in args:  # a graph of its own, whose values are its own
        return []
    here = [args[key] for key in ("name", "as_name") if isinstance(args.get(key), str)]
    return here + [name for value in args.values() for name in names_in(value)]


def _check_signature(record: dict[str, Any]) -> dict[str, Any]:
    """Check how the network's inputs and outputs are nested."""
    return {**record, "in_spec": _tree(record["in_spec"]), "out_spec": _tree(record["out_spec"])}


def _tree(text: str) -> str:
    """Return how inputs or outputs are nested, in lists, tuples and dicts.  Raises Refused for anything else."""
    if not text:
        return text
    version, spec = _pair(parse_json(text.encode(), "a container"))
    return json.dumps([version, _plain_tree(spec, 0)])


def _plain_tree(spec: Any, depth: int) -> dict[str, Any]:
    """Return one container of a tree; those of the libraries, which name their parts, become dicts."""
    if depth > DEEPEST or type(spec) is not dict or spec.keys() != {"type", "context", "children_spec"}:
        raise Refused("a container of another kind")
    kind, context, children = spec["type"], spec["context"], spec["children_spec"]
    expect(children, list, "a container")
    inner = [_plain_tree(child, depth + 1) for child in children]
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
    expect(context, str, "the keys of a container")
    keys = parse_json(context.encode(), "the keys of a container")
    expect(keys, list, "the keys of a container")
    if len(keys) != len(inner) or not all(
        (type(k) is str and PATH.fullmatch(k)) or (type(k) is int and abs(k) < LARGEST) for k in keys
    ):
        raise Refused("a container with odd keys")
    return {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": inner}


def _pair(value: Any) -> tuple[int, Any]:
    """Return the version and the containers of a tree.  Raises Refused if it is of another form."""
    if type(value) is not list or len(value) != 2 or type(value[0]) is not int:
        raise Refused("a container of another kind")
    return value[0], value[1]


def _check_payload(record: dict[str, Any]) -> dict[str, Any]:
    """Check that a weight is raw numbers in a file of the archive."""
    if record["use_pickle"]:
        raise Refused("a pickled tensor")
    if record["tensor_meta"] is None or not re.fullmatch(r"(weight|tensor)_\d{1,9}", record["path_name"]):
        raise Refused(f"a weight in {record['path_name'][:80]!r}")
    return record


def _check_program(record: dict[str, Any]) -> dict[str, Any]:
    """Check that a program is a network of ATen operators whose sizes don't depend on values."""
    if not set(record.get("verifiers", [])) <= {"ATEN", "TRAINING"}:
        raise Refused(f"another kind of program, {record['verifiers']}")
    if not re.fullmatch(r"[\w.+<=-]{0,80}", record.get("torch_version", "")):
        raise Refused("a version of torch that is none")
    if not all(SYMBOL.fullmatch(symbol) for symbol in record["range_constraints"]):
        raise Refused("sizes that depend on values")
    module = record["graph_module"]
    if not module["module_call_graph"] or module["module_call_graph"][0]["fqn"]:
        raise Refused("no signature of the network")
    module["module_call_graph"] = module["module_call_graph"][:1]  # those of its parts are not used
    return record


CHECKS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "TensorArgument": _check_variable,
    "SymIntArgument": _check_variable,
    "SymFloatArgument": _check_variable,
    "SymBoolArgument": _check_variable,
    "GraphArgument": _check_variable,
    "InputToConstantInputSpec": _check_variable,
    **dict.fromkeys(("InputToParameterSpec", "InputToBufferSpec", "InputToTensorConstantSpec"), _check_place),
    **dict.fromkeys(("BufferMutationSpec", "UserInputMutationSpec"), _check_place),
    "Argument": _check_argument,
    "Device": _check_device,
    "TensorMeta": _check_tensor,
    "SymExpr": _check_expression,
    "Node": _check_node,
    "Graph": _check_graph,
    "ModuleCallSignature": _check_signature,
    "PayloadMeta": _check_payload,
    "ExportedProgram": _check_program,
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
    """Return a size that is a number.  Raises Refused for one that depends on inputs."""
    if size.keys() != {"as_int"}:
        raise Refused("a weight without a fixed size")
    return size["as_int"]
