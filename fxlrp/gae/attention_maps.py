"""Baselines for transformers of pictures, read off a captured graph: what attention looked at, and Grad-CAM of tokens.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020 (2005.00928): rollout.
Chefer et al., "Generic Attention-model Explainability …", ICCV 2021 (2103.15679): attention times its gradient.
Selvaraju et al., "Grad-CAM", ICCV 2017 (1610.02391).
Bousselham et al., "LeGrad", ICCV 2025 (2404.03214): the gradient of what each layer's tokens would be classified as.
Mehri et al., "LibraGrad", CVPR 2025 (2411.16760): attention, deviations and gates constant, summed over layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate

from fxlrp.answers import ModelCall
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.gae.metric import Explain, Views
from fxlrp.graph.plan import Plan
from fxlrp.methods.gradients import GRADIENT
from fxlrp.nodes import args_of, outputs_of
from fxlrp.ops import about
from fxlrp.patterns.attention import expand_every_attention
from fxlrp.patterns.residual import between

aten = torch.ops.aten
PLAIN = GRADIENT.extend(name="plain", passes=(expand_every_attention,))
"""The model itself, with attention written as its products and softmax."""
NORMS = (aten.layer_norm.default, aten.rms_norm.default)
WRITTEN_OUT = ((aten.rsqrt, aten.sqrt, aten.pow), (aten.add,), (aten.mean,), (aten.pow, aten.square))
"""An RMS norm in a model's own ops, from its factor back to what it reads: (mean(x²) + ε)^±½."""
MOST_EXTRA = 8
"""The most tokens in front of those of the patches: a class token and registers."""
Score = Callable[[Tensor], Tensor]
"""What is explained, of a model's logits: a number whose gradient is taken."""


class Grid(NamedTuple):
    """Tokens of patches: `extra` others in front, then rows × columns."""

    extra: int
    rows: int
    columns: int

    def patches(self, tokens: Tensor) -> Tensor:
        """The patches of [B, tokens] as [B, 1, rows, columns]."""
        return tokens[:, self.extra :].unflatten(1, (1, self.rows, self.columns))


def grid_of(count: int, size: Sequence[int]) -> Grid | None:
    """How `count` tokens may be patches of a picture of this size [H, W]; None if they can't be."""
    for extra in range(min(MOST_EXTRA, count - 2)):
        for rows in range(1, count - extra + 1):
            columns, rest = divmod(count - extra, rows)
            if not rest and rows * size[1] == columns * size[0] and size[0] % rows == 0 and columns > 1:
                return Grid(extra, rows, columns)
    return None


class _Recorded(fx.Interpreter):
    """Runs a graph and keeps the values of some of its nodes."""

    def __init__(self, graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
        super().__init__(graph)
        self.values: dict[fx.Node, Tensor] = dict.fromkeys(nodes, torch.empty(0))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.values:
            self.values[n] = value
        return value


def of_class(plan: Plan, target: Tensor) -> Score:
    """The sum of the classes' scores [B] in logits of a plan."""
    return lambda logits: plan.axes.rows(logits).gather(1, target[:, None]).sum()


def ran(call: ModelCall, score: Score, nodes: Sequence[fx.Node]) -> list[tuple[Tensor, Tensor]]:
    """The values of nodes, and the gradient of the logits' score for each."""
    plan = call.plan
    recorded = _Recorded(plan.graph, nodes)
    with torch.enable_grad(), plan.in_its_types():
        out = recorded.run(*call.tensors)
        values = [recorded.values[n] for n in nodes]
        gradients = torch.autograd.grad(score(out[plan.logits]), values, allow_unused=True)
    zeros = (torch.zeros_like(v) if g is None else g for v, g in zip(values, gradients, strict=True))
    return [(v.detach(), g) for v, g in zip(values, zeros, strict=True)]


def active_calls(plan: Plan) -> list[fx.Node]:
    """The ops of a graph on the way of relevance."""
    return [n for n in plan.graph.graph.nodes if n.op == "call_function" and n.name in plan.active]


def softmaxes_of(plan: Plan) -> list[fx.Node]:
    """The softmaxes of a graph on the way of relevance."""
    return [n for n in active_calls(plan) if about(n.target).kind == "softmax"]


def read_by_norms(plan: Plan) -> dict[fx.Node, fx.Node]:
    """What each norm of a graph reads, on the way of relevance; one that is written out is its factor."""
    calls = [n for n in plan.graph.graph.nodes if n.op == "call_function"]
    read = {n: x for n in calls if isinstance(x := _read_by_norm(n), fx.Node)}
    return {n: x for n, x in read.items() if x.name in plan.active}


def _read_by_norm(node: fx.Node) -> Any:
    """What a norm or the factor of one reads, None of any other node."""
    if node.target in NORMS or getattr(node.target, "op", None) in NORMS:
        return args_of(node)[0]
    x: Any = node
    for packets in WRITTEN_OUT:
        if not isinstance(x, fx.Node) or getattr(x.target, "overloadpacket", None) not in packets:
            return None
        x = args_of(x)[0]
    cast = isinstance(x, fx.Node) and getattr(x.target, "overloadpacket", None) == aten.to  # for the squares
    return args_of(x)[0] if cast else x


def _attention(model: nn.Module, name: str, step: Any) -> Explain:
    """A method that multiplies up matrices of attention among all tokens, layer by layer.

    step(weights, gradient) [B, heads, T, T] → what a layer adds to or passes on in R [B, T, T], and how.
    """
    explainer = convert(model, rules=PLAIN)

    def explain(views: Views) -> Tensor:
        _check_pictures(views, name)
        call = explainer.call((views.x,), {})
        size, batch = views.x.shape[-2:], len(views.x)
        layers = softmaxes_of(call.plan)
        pairs = ran(call, of_class(call.plan, views.target), layers) if layers else []
        square = [(a, g) for a, g in pairs if a.ndim == 4 and len(a) == batch and a.shape[2] == a.shape[3]]
        counts = {a.shape[3] for a, _ in square}
        grid = grid_of(counts.pop(), size) if len(counts) == 1 else None
        if grid is None:
            raise _no_attention(name)
        eye = torch.eye(square[0][0].shape[3], dtype=views.x.dtype, device=views.x.device).expand(batch, -1, -1)
        reached = eye
        for weights, gradient in square:
            reached = step(weights, gradient, eye, reached)
        row = reached[:, 0] if grid.extra else reached.mean(1)  # the class token's, or that of the mean of all
        return interpolate(grid.patches(row), size=tuple(size), mode="bilinear")

    return explain


def _check_pictures(views: Views, name: str) -> None:
    """Raise FxlrpError for inputs that are no pictures."""
    if views.x.ndim != 4:
        raise FxlrpError(f"{name} explains pictures [B, C, H, W] alone.")


def _no_attention(name: str) -> FxlrpError:
    return FxlrpError(f"{name} needs layers of attention among all patches of a picture; this model has none.")


def attention_rollout(model: nn.Module, seed: int) -> Explain:
    """R ← (½ mean over heads of A + ½ I) R, layer by layer; the same for every class."""
    return _attention(model, "attention-rollout", lambda a, g, eye, r: (0.5 * a.mean(1) + 0.5 * eye) @ r)


def chefer(model: nn.Module, seed: int) -> Explain:
    """R ← R + mean over heads of (A ⊙ ∂score/∂A)⁺ R, layer by layer."""
    return _attention(model, "chefer", lambda a, g, eye, r: r + (a * g).clamp(min=0).mean(1) @ r)


def attention_x_gradient(model: nn.Module, seed: int) -> Explain:
    """Mean over heads of (A ⊙ ∂score/∂A)⁺ of the last layer (as Chefer et al. compare with)."""
    return _attention(model, "attention-x-gradient", lambda a, g, eye, r: (a * g).clamp(min=0).mean(1))


def legrad(model: nn.Module, seed: int) -> Explain:
    """Σ over layers of the mean, over heads and queries, of (∂s/∂A)⁺, where s is the class's score if the model's head
    saw the tokens that the layer's block returns."""
    explainer = convert(model, rules=PLAIN)

    def explain(views: Views) -> Tensor:
        _check_pictures(views, "legrad")
        call = explainer.call((views.x,), {})
        row = legrad_of_tokens(call, of_class(call.plan, views.target))
        if row is None:
            raise _no_attention("legrad")
        return _of_patches(row, views.x.shape[-2:], "legrad")

    return explain


def legrad_of_tokens(call: ModelCall, score: Score) -> Tensor | None:
    """LeGrad of each token [B, T]; None for a model without blocks of attention and norms.

    Raises FxlrpError if its tokens change in number.
    """
    plan = call.plan
    order = {node: i for i, node in enumerate(plan.graph.graph.nodes)}
    run = fx.Interpreter(plan.graph, garbage_collect_values=False)
    with torch.enable_grad(), plan.in_its_types():
        run.run(*call.tensors)
        values, grads = dict(run.env), []
        layers = [n for n in softmaxes_of(plan) if values[n].ndim == 4]  # a router's is no attention
        norms = {n: x for n, x in read_by_norms(plan).items() if values[x].ndim == 3}  # nor is a head's of tokens
        until = [*(order[n] for n in layers[1:]), len(order)]
        windows = [(order[layer], stop) for layer, stop in zip(layers, until, strict=False)]
        reads = [[x for n, x in norms.items() if start < order[n] < stop] for start, stop in windows]
        if not reads or not all(reads):
            return None
        ends = [read[-1] for read in reads]
        head = between(ends[-1], plan.graph.graph.output_node())[:-1]
        for layer, end in zip(layers, ends, strict=True):
            if values[end].shape != values[ends[-1]].shape:
                raise FxlrpError("legrad needs blocks whose tokens the head can read; this model's change in number.")
            run.env = {**values, ends[-1]: values[end]}
            for node in head:
                run.env[node] = run.run_node(node)
            value = score(run.env[outputs_of(plan.graph)[plan.logits]])
            grads.append(torch.autograd.grad(value, values[layer], retain_graph=True)[0].clamp(min=0).mean((1, 2)))
    return torch.stack(grads).sum(0)


def libragrad(model: nn.Module, seed: int) -> Explain:
    """Σ over the inputs of all norms of x ⊙ gradient, channels summed, where attention, deviations and gates are
    constant (as by the rulebook cp-lrp)."""
    explainer = convert(model, rules="cp-lrp")

    def explain(views: Views) -> Tensor:
        _check_pictures(views, "libragrad")
        row = libragrad_of_tokens(explainer, (views.x,), {}, target=views.target)
        if row is None:
            raise _no_attention("libragrad")
        return _of_patches(row, views.x.shape[-2:], "libragrad")

    return explain


def libragrad_of_tokens(explainer: Explainer, args: tuple, kwargs: dict[str, Any], **asked: Any) -> Tensor | None:
    """LibraGrad of each token [B, T]; None for a model without norms of tokens.  explainer: by cp-lrp."""
    plan = explainer.call(args, kwargs).plan
    read = list(dict.fromkeys(x.name for x in read_by_norms(plan).values()))
    a = explainer(*args, **kwargs, **asked, contrast=None, at=read)
    tokens = [r.sum(2) for r in a.latent.values() if r.ndim == 3]
    return torch.stack(tokens).sum(0) if len({t.shape for t in tokens}) == 1 else None


def _of_patches(row: Tensor, size: Sequence[int], name: str) -> Tensor:
    """A number for each token [B, T] as a map [B, 1, H, W].  Raises FxlrpError if the tokens are no patches."""
    grid = grid_of(row.shape[1], size)
    if grid is None:
        raise _no_attention(name)
    return interpolate(grid.patches(row.detach()), size=tuple(size), mode="bilinear")


def token_gradcam(explainer: Explainer) -> Explain:
    """Grad-CAM at the last norm of a map or of tokens whose gradient is not at one place alone: in a transformer with a
    class token the first norm of its last block.  explainer: by PLAIN."""

    def explain(views: Views) -> Tensor:
        _check_pictures(views, "gradcam")
        call = explainer.call((views.x,), {})
        size = views.x.shape[-2:]
        norms = [n for n in active_calls(call.plan) if n.target in NORMS]
        for value, gradient in reversed(ran(call, of_class(call.plan, views.target), norms)):
            grid = _grid_of_map(value, size)
            if grid is None or len(value) != len(views.x):
                continue
            flat, slope = (t.flatten(1, -2)[:, grid.extra :] for t in (value, gradient))  # [B, patches, C]
            if int((slope != 0).any(2).sum(1).min()) > 1:
                cam = (flat * slope.mean(1, keepdim=True)).sum(2).unflatten(1, (1, grid.rows, grid.columns))
                return interpolate(cam, size=tuple(size), mode="bilinear")
        raise FxlrpError("gradcam needs a convolution or a norm whose map is larger than a pixel; this model has none.")

    return explain


def _grid_of_map(value: Tensor, size: Sequence[int]) -> Grid | None:
    """The grid of a map with its channels last, [B, rows, columns, C] or [B, tokens, C]."""
    if value.ndim == 4:
        rows, columns = value.shape[1:3]
        return Grid(0, rows, columns) if rows * size[1] == columns * size[0] and columns > 1 else None
    return grid_of(value.shape[1], size) if value.ndim == 3 else None


def has_attention_after_convolutions(explainer: Explainer, x: Tensor) -> bool:
    """Whether the last thing a model does to a map is attention, and no convolution.  explainer: by PLAIN."""
    plan = explainer.call((x,), {}).plan
    kinds = [about(n.target).kind for n in active_calls(plan)]
    return (
        "softmax" in kinds[len(kinds) - kinds[::-1].index("convolution") :]
        if "convolution" in kinds
        else "softmax" in kinds
    )
