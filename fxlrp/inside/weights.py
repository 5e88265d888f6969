"""Weights: how much relevance each weight and each output channel of a network passes, over a set of data.

R_w = w ⊙ ∂⟨g, f(x, w)⟩/∂w for a layer z = f(x, w) with cotangent g: the relevance of the layer's output, divided by the
ε-rule among its weights instead of its inputs.  As pruning criteria: Yeom et al., "Pruning by Explaining", Pattern
Recognition 2021; Hatefi et al., "Pruning by Explaining Revisited", 2024.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.engine.replaced import Item, ReplacedOp
from fxlrp.engine.seeds import Contrast, Question, Target
from fxlrp.errors import FxlrpError, counted
from fxlrp.graph.plan import Plan
from fxlrp.inside.blocks import LAYERS
from fxlrp.inside.places import op_of, place, short_name
from fxlrp.inside.runs import Run, arguments, each_run, relevance_of
from fxlrp.nodes import leaves
from fxlrp.ops import about
from fxlrp.patterns.normed import Normed
from fxlrp.reports.report import Tabled
from fxlrp.rules.folded import product_of, unfolded
from fxlrp.rules.weighted import FirstLayer

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer

LABEL = "label"


@dataclass(frozen=True, repr=False)
class Weights(Tabled):
    """The mean relevance, over `count` samples, of what is learned.

    weight: by the parameter's name, relevance shaped like it.
    weight_size: by the same name, the mean of |R| over the samples, if they were weighed one by one; else empty.
    channel: by the same name, the relevance of each output channel of its layer; size: the mean of its |R|.
    """

    weight: dict[str, Tensor]
    channel: dict[str, Tensor]
    size: dict[str, Tensor]
    count: int
    rules: str = ""
    weight_size: dict[str, Tensor] = field(default_factory=dict)

    def table(self) -> Table:
        """A rich table of the layers: how many weights carry half of their relevance."""
        out = Table(title=f"relevance of weights over {counted(self.count, 'sample')}, by {self.rules}")
        for column in ("parameter", "weights", "relevance", "half of |R| in"):
            out.add_column(column, justify="left" if column == "parameter" else "right")
        for name, r in self.weight.items():
            sizes = r.abs().flatten().sort(descending=True).values.cumsum(0)
            half = int((sizes < sizes[-1] / 2).sum()) + 1
            out.add_row(name, str(r.numel()), f"{float(r.sum()):+.4g}", f"{half / r.numel():.1%}")
        return out

    def __repr__(self) -> str:
        return f"<Weights of {len(self.weight)} layers over {counted(self.count, 'sample')}>"


class Layer(NamedTuple):
    """A product with a learned weight: its node, the weight's name, and which leaf of the call it is."""

    node: fx.Node
    name: str
    at: int


def weigh(
    explainer: Explainer, data: Iterable[Any], target: Target | str, contrast: Contrast, *, each: bool = False
) -> Weights:
    """The relevance of a model's weights over data: see `Explainer.weights`."""
    weight: dict[str, Tensor] = {}
    channel: dict[str, Tensor] = {}
    size: dict[str, Tensor] = {}
    weight_size: dict[str, Tensor] = {}
    count = 0

    def kept(plan: Plan) -> set[str]:
        nodes = [layer.node for layer in layers_of(plan, explainer)]
        return {n.name for node in nodes for n in (node, *node.all_input_nodes)}

    for batch in data:
        args, kwargs, asked = _call(batch, target)
        for run in each_run(explainer, args, kwargs, Question(asked, contrast), kept, apart=each):
            layers = layers_of(run.call.plan, explainer)
            count += int(run.call.plan.axes.count(run.call.tensors))
            values = run.opened.values
            gs = run.cotangents([layer.node.name for layer in layers])
            for layer, g in zip(layers, gs, strict=True):
                of_weight = _of_weight(run, layer, g)
                _add(weight, layer.name, of_weight)
                if each:
                    _add(weight_size, layer.name, of_weight.abs())
                here = place(run.call.plan, layer.node.name)
                r = here.arranged(relevance_of(explainer.rulebook, values[layer.node.name], g))
                of_channels = r.flatten(1, -2).sum(1) if r.ndim > 2 else r
                _add(channel, layer.name, of_channels.sum(0))
                _add(size, layer.name, of_channels.abs().sum(0))
    if not count:
        raise FxlrpError("The data has no batch: give a list of batches, or a loader.")
    if not weight:
        raise FxlrpError("No linear or convolutional layer with a weight of its own is on the way of relevance.")
    sums = weight, channel, size, weight_size
    weight, channel, size, weight_size = ({name: t / count for name, t in of.items()} for of in sums)
    return Weights(weight, channel, size, count, explainer.rulebook.name, weight_size)


def _call(batch: Any, target: Any) -> tuple[tuple, dict[str, Any], Any]:
    """The arguments of a batch, and what is asked of it."""
    if isinstance(target, str) and target == LABEL:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise FxlrpError('target="label" takes the class from the data: give batches (inputs, classes).')
        batch, target = batch
        target = torch.as_tensor(target)
    return *arguments(batch), target


def layers_of(plan: Plan, explainer: Explainer) -> list[Layer]:
    """The products of a plan's graph whose weight is a parameter of the model."""
    names = {id(p): name for name, p in explainer.model.named_parameters()}
    layers = []
    for node in plan.graph.graph.nodes:
        is_layer = short_name(node) in LAYERS or about(op_of(node)).kind == "convolution"
        if node.name not in plan.active or not is_layer:
            continue
        for i, leaf in enumerate(leaves(node)):
            p = (
                attrgetter(str(leaf.target))(plan.graph)
                if isinstance(leaf, fx.Node) and leaf.op == "get_attr"
                else None
            )
            if isinstance(p, Tensor) and p.ndim > 1 and id(p) in names:
                layers.append(Layer(node, names[id(p)], i))
                break
    return layers


def _of_weight(run: Run, layer: Layer, g: Tensor) -> Tensor:
    """The relevance of a layer's weight, for all samples of a run together."""
    args, kwargs = fx.map_arg((layer.node.args, dict(layer.node.kwargs)), lambda n: run.opened.values[n.name])
    flat, spec = pytree.tree_flatten((args, kwargs))
    flat = [t.detach() if isinstance(t, Tensor) else t for t in flat]
    w = flat[layer.at] = flat[layer.at].requires_grad_()
    args, kwargs = pytree.tree_unflatten(flat, spec)
    op: Any = layer.node.target
    while isinstance(op, ReplacedOp | Item | Normed | FirstLayer):
        args = args[1:] if isinstance(op, FirstLayer) else args
        op = op.op
    args, kwargs = unfolded(op, args, kwargs)  # with a norm folded in, of the scaled weight, w · scale
    z = product_of(op)(*args, **kwargs)
    return w.detach() * torch.autograd.grad(z, w, g)[0]


def _add(to: dict[str, Tensor], name: str, more: Tensor) -> None:
    to[name] = to[name] + more if name in to else more.detach()
