"""Exports explainers as a .pt2 of forward and relevance pass, which torch runs without fxlrp."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxlrp.attribution import Attribution
from fxlrp.capture.axes import Axes, argument
from fxlrp.capture.confine import alone
from fxlrp.capture.derivatives import transpose_convolutions
from fxlrp.capture.symbols import free_symbols
from fxlrp.engine.seeds import Contrast, by_classes, directions
from fxlrp.errors import FxlrpError
from fxlrp.nodes import args_of

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer
    from fxlrp.export.joint import Joint

aten = torch.ops.aten

RECORD = "fxlrp.json"
"""The name of the file in the archive that describes its inputs and outputs."""


def export(
    explainer: Explainer,
    path: str | Path,
    *,
    contrast: Contrast = "default",
    aoti: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Saves the explainer for the graph of the latest call (or of the example inputs); returns the path.

    The .pt2 runs without fxlrp by `torch.export.load(path).module()`: (*inputs, target) → (logits, *relevance), with
    target [B] a class for each sample, −1 for its top one, and any batch size if the model allows it.
    contrast: the contrast of the target, which is fixed in the graph.
    aoti: compiles it for this machine instead (`torch._inductor.aoti_load_package` runs it).
    about: further entries for the file's JSON record.

    A path that ends in .onnx is written by torch.onnx.export, if it supports the ops.

    Raises FxlrpError if there is no graph to export, or the file can't be written.
    """
    with alone(below_backends=True):
        return _export(explainer, Path(path), contrast, aoti, about)


def check_file(path: Path, aoti: bool = False) -> None:
    """Raises FxlrpError for a path that no explainer is written to."""
    if path.suffix not in (".pt2", ".onnx") or (aoti and path.suffix != ".pt2"):
        raise FxlrpError(f"{path} should end in .pt2 or .onnx (--aoti: .pt2).")


def _export(explainer: Explainer, path: Path, contrast: Contrast, aoti: bool, about: Mapping[str, Any] | None) -> Path:
    check_file(path, aoti)
    plan = explainer.latest
    contrast = explainer.rulebook.resolve(contrast, plan.independent)
    if any(isinstance(i, str) for i in plan.readouts):
        raise FxlrpError("An exported explainer is read at inputs alone; convert the model without read=….")
    joint = explainer.joint(contrast=contrast, fold=aoti).eval()
    placeholders = plan.graph.graph.find_nodes(op="placeholder")
    values = [n.meta["val"] for n in placeholders]
    batch = torch.export.Dim("batch")
    sample_axes = zip(values, plan.axes.inputs, strict=True)
    shapes = [{axis: batch} if axis is not None and free_symbols(v.shape[axis]) else {} for v, axis in sample_axes]
    shapes.append({0: batch} if any(shapes) else {})
    target = torch.full((plan.axes.count(plan.capture.inputs),), -1, device=plan.capture.inputs[0].device)
    inputs, narrow = plan.capture.inputs, plan.capture.narrow
    args = (*(map(Tensor.to, inputs, narrow[0]) if narrow else inputs), target)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".onnx":
        _write_as_onnx_has_it(joint.traced)
        _onnx(joint, args, shapes, path)
        return path
    program = torch.export.export(joint, args, dynamic_shapes=(tuple(shapes),))
    if aoti:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        return path
    record = {
        "inputs": list(plan.capture.names),
        "explained": list(plan.readouts),
        "rulebook": explainer.rulebook.name,
        "contrast": contrast,
        "axes": list(plan.axes.inputs),
        "independent": plan.independent,
        **(about or {}),
    }
    torch.export.save(program, str(path), extra_files={RECORD: json.dumps(record)})
    return path


def _onnx(joint: Joint, args: tuple, shapes: list[dict], path: Path) -> None:
    if find_spec("onnxscript") is None:
        raise FxlrpError("Writing .onnx needs onnxscript: pip install onnx onnxscript.")
    try:
        # onnxscript (0.7) takes a sum at all places in order for a write over them
        sums = any(n.target is aten.index_put.default and True in n.args[3:] for n in joint.traced.graph.nodes)
        how: dict[str, Any] = {"dynamo": True, "verbose": False, "optimize": not sums}
        torch.onnx.export(joint, args, str(path), dynamic_shapes=(tuple(shapes),), **how)
    except Exception as error:
        ops = ", ".join(sorted(set(re.findall(r"OpOverload\(op='([\w.]+)'", _chain(error)))))
        reason = f"it has no {ops}" if ops else str(error).strip().split("\n")[0][:300]
        raise FxlrpError(f"The graph can't be written as ONNX: {reason}.  Export a .pt2 instead.") from error


def _write_as_onnx_has_it(gm: fx.GraphModule) -> None:
    """Writes the ops of relevance passes that ONNX lacks by others: copysign(a, b) as |a| or −|a| where b < 0; the
    derivative of adaptive pooling by the mean as a product with the matrices that it pools rows and columns by."""
    transpose_convolutions(gm)
    graph = gm.graph
    for node in graph.find_nodes(op="call_function", target=aten.copysign.Tensor):
        size, sign = args_of(node)
        with graph.inserting_before(node):
            size = graph.call_function(aten.abs.default, (size,))
            negative = graph.call_function(aten.lt.Scalar, (sign, 0))
            opposite = graph.call_function(aten.neg.default, (size,))
            node.replace_all_uses_with(graph.call_function(aten.where.self, (negative, opposite, size)))
        graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=aten._adaptive_avg_pool2d_backward.default):
        g, x = args_of(node)
        pairs = zip(x.meta["val"].shape[2:], g.meta["val"].shape[2:], strict=True)
        rows, columns = (_pooling(int(n), int(m)).to(x.meta["val"]) for n, m in pairs)
        for name, value in ((f"{node.name}_rows", rows.T), (f"{node.name}_columns", columns)):
            gm.register_buffer(name, value.contiguous())
        with graph.inserting_before(node):
            left, right = graph.get_attr(f"{node.name}_rows"), graph.get_attr(f"{node.name}_columns")
            half = graph.call_function(aten.matmul.default, (left, g))
            node.replace_all_uses_with(graph.call_function(aten.matmul.default, (half, right)))
        graph.erase_node(node)
    gm.recompile()


def _pooling(n: int, m: int) -> Tensor:
    """The matrix [m, n] by which adaptive pooling takes the means of n entries."""
    return torch.nn.functional.adaptive_avg_pool1d(torch.eye(n)[None], m)[0].T


def _chain(error: BaseException | None) -> str:
    return "" if error is None else f"{error}\n{_chain(error.__cause__)}"


class ExportedExplainer(nn.Module):
    """An exported explainer, called as the original was.  `fxlrp.inputs` makes it from a file; it takes a module that
    torch loaded, and the file's record about it."""

    def __init__(self, module: nn.Module, about: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.about = dict(about)

    def count(self, args: Sequence[Tensor]) -> int:
        """The number of samples in a call.  Raises FxlrpError for inputs other than those it was exported for."""
        axes = Axes(tuple(self.about["axes"]))
        if len(args) != len(axes.inputs) or not axes.fit(args):
            names = ", ".join(map(argument, self.about["inputs"]))
            raise FxlrpError(f"The explainer was exported for {len(axes.inputs)} inputs ({names}), of other shapes.")
        return axes.count(args)

    def forward(
        self, *args: Tensor, target: Any = None, contrast: Contrast = "default", **question: Any
    ) -> Attribution:
        """Explains a call; target is None, a class or a tensor of one for each sample [B].

        Raises FxlrpError for a contrast other than it was exported with, a target that is no class, and any other
        question.
        """
        if question:
            raise FxlrpError(
                f"An exported explainer knows its inputs, target and contrast alone, not {', '.join(question)}: ask "
                "the model that it was exported from."
            )
        if contrast not in ("default", self.about["contrast"]):
            fixed = self.about["contrast"]
            raise FxlrpError(f"This explainer was exported with contrast={fixed!r}, not {contrast!r}; export another.")
        if not by_classes(target):
            raise FxlrpError("An exported explainer is asked by classes: target is None, a class or a tensor of them.")
        classes = torch.as_tensor(-1 if target is None else target, device=args[0].device)
        count = self.count(args)
        try:
            with torch.no_grad():
                logits, *maps = self.module(*args, classes.expand(count).contiguous())
        except RuntimeError as error:  # torch checks the inputs' shapes
            if "Expected input" not in str(error):
                raise
            reason = str(error).strip().split("\n")[0].split(". If you meant")[0]
            raise FxlrpError(f"{reason}: the explainer was exported for inputs of another shape (--size).") from error
        if target is not None:
            directions(logits, target, None)  # raises FxlrpError if the target does not fit
        names = tuple(self.about["inputs"][i] for i in self.about["explained"])
        inputs = tuple(args[i] for i in self.about["explained"])
        index = logits.argmax(1) if target is None else classes.expand(count)
        every = maps[0] if len(maps) == 1 else tuple(maps)
        made = {"rules": self.about.get("rulebook", ""), "contrast": self.about["contrast"]}
        made["independent"] = self.about.get("independent") is True
        return Attribution(every, logits, logits, index, names, inputs, **made)
