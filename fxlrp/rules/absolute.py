"""The rules of absLRP, as formulas.

Vukadin et al. 2024 share relevance R_j of an output z_j = f_j(a; θ) by absolute contributions:

    R_a = a ⊙ ∇_a f(a; θ)ᵀ s + |a| ⊙ ∇f(|a|; |θ|)ᵀ s,   s = R / |z|

With R_a = a ⊙ g_a, a formula takes s = sign(z) g_z, z and the op's arguments, and returns g_a for its first arguments,
in their order; None stands for one that takes no relevance, a constant of the method.  Norms and softmax divide by some
h, which the paper holds constant.  "2024-04" is the authors' code of April 2024 (`fxlrp.methods.published`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.rules.calculus import differentiable, slope, vjp
from fxlrp.rules.quantities import Maybe, by_parts, over_abs, where_positive


def absolute(
    g: Tensor, z: Tensor, *args: object, op: Callable[..., Tensor], argnums: tuple[int, ...], **kwargs: object
) -> list[Tensor]:
    """The rule itself, for any op:  g_a = J_f(a; θ)ᵀ s + sign(a) ⊙ J_f(|a|; |θ|)ᵀ s.

    A product with weights thus keeps positive contributions, R_i = 2 Σ_j (x_i w_ij)⁺ s_j, and its bias takes part in
    |z| only; of a product x y of two activations, each gets 2 (x y)⁺ s.

    argnums: which of the call's leaves, in pytree order, are a; all other tensors are θ.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))

    def call(*xs: Tensor, magnitudes: bool) -> Tensor:
        new = [by_parts(torch.abs, t) if magnitudes and differentiable(t) else t for t in leaves]
        for i, x in zip(argnums, xs, strict=True):
            new[i] = x
        a, k = pytree.tree_unflatten(new, spec)
        return op(*a, **k)

    call.__name__ = str(op)
    xs = [leaves[i] for i in argnums]
    s = over_abs(g, z)
    signed = vjp(partial(call, magnitudes=False), xs, s)
    absolute = vjp(partial(call, magnitudes=True), [by_parts(torch.abs, x) for x in xs], s)

    def both(p: Tensor, a: Tensor, x: Tensor) -> Tensor:
        # at a = 0, R = a g is 0 whatever the derivative, which may be infinite there
        return (p + x.sign() * a).masked_fill(x == 0, 0)

    return [by_parts(both, p, a, x) for p, a, x in zip(signed, absolute, xs, strict=True)]


Formulated = TypeVar("Formulated", bound="Tensor | tuple[Tensor | None, ...]")


class Formula(Generic[Formulated]):
    """A formula (s, z, *args) → cotangents of its arguments, as the rule (g, z, *args) → those of `argnums`."""

    def __init__(self, formula: Callable[..., Formulated]) -> None:
        functools.update_wrapper(self, formula)
        self.formula = formula
        signature = inspect.signature(formula)
        argnums = inspect.Parameter("argnums", inspect.Parameter.KEYWORD_ONLY, default=(0,))
        keywords = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        self.__signature__ = signature.replace(parameters=[*keywords, argnums])

    def __call__(
        self, g: Tensor, z: Tensor, *args: object, argnums: tuple[int, ...] = (0,), **kwargs: object
    ) -> list[Tensor | None]:
        out = self.formula(over_abs(g, z), z, *args, **kwargs)
        cotangents: tuple[Tensor | None, ...] = (out,) if isinstance(out, Tensor) else out
        return [cotangents[i] for i in argnums]


@Formula
def add(s: Tensor, z: Tensor, x: Tensor | float, y: Tensor | float, *, alpha: float = 1) -> tuple[Tensor, Tensor]:
    """x + αy: relevance goes to the positive summands, R_x = 2 x⁺ s and R_y = 2 (αy)⁺ s.  A constant one takes part in
    |z| only, as a bias does."""
    return 2 * (x > 0) * s, 2 * alpha * (alpha * y > 0) * s


@Formula
def sub(s: Tensor, z: Tensor, x: Tensor | float, y: Tensor | float, *, alpha: float = 1) -> tuple[Tensor, Tensor]:
    """x − αy is the sum of x and −αy."""
    return add.formula(s, z, x, y, alpha=-alpha)


@Formula
def rsub(s: Tensor, z: Tensor, x: Tensor | float, y: Tensor | float, alpha: float = 1) -> tuple[Tensor, Tensor]:
    """y − αx is the sum of −αx and y."""
    return add.formula(s, z, y, x, alpha=-alpha)[::-1]


@Formula
def positive_sum(s: Tensor, z: Tensor, x: Tensor, *rest: object, op: Callable[..., Tensor], **kwargs: object) -> Tensor:
    """A sum with weights ≥ 0 (a mean, a value between pixels), R_x = 2 x⁺ ⊙ Jᵀs; arguments that say where take
    nothing."""
    (d,) = vjp(lambda t: op(t, *rest, **kwargs), [x], s)
    return 2 * (x > 0) * d


@Formula
def grouped_mm(
    s: Tensor, z: Tensor, x: Tensor, w: Tensor, offs: Tensor, *rest: object, op: Callable[..., Tensor], **kwargs: object
) -> Tensor:
    """One product for each group of x's rows (experts), g_x = Wᵀs + sign(x) ⊙ |W|ᵀs: `absolute` written out, because
    torch has no derivative of this op on every device."""

    def transposed(w: Tensor) -> Tensor:
        return op(s, w.mT, offs, *rest, **kwargs)

    return transposed(w) + x.sign() * transposed(w.abs())


@Formula
def activation(s: Tensor, z: Tensor, x: Tensor, *args: object, op: Callable[..., Tensor], **kwargs: object) -> Tensor:
    """A non-linearity f, entry by entry: relevance goes to positive inputs, R_x = 2 x⁺ f'(x) s.

    It is the absLRP rule with a companion for f(|x|) whose derivative is sign(x) f'(x): |x| · gate(x) for gated units
    such as GELU, f(|x|) itself for odd functions such as tanh.  f must not fall where x > 0.
    """
    return 2 * where_positive(slope(lambda t: op(t, *args, **kwargs), x), x) * s


@Formula
def exp(s: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """An exponential, R_x = 2 |x| z s: relevance keeps its sign, and grows with the exponent's distance from 0."""
    return 2 * x.sign() * z * s


@Formula
def logsumexp(s: Tensor, z: Tensor, x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """log Σ exp(x), whose derivative is softmax(x): R_x = 2 |x| softmax(x) s keeps the sign of relevance, as `exp`
    does."""
    return 2 * x.sign() * vjp(lambda t: t.logsumexp(dim, keepdim), [x], s)[0]


@Formula
def softmax(s: Tensor, z: Tensor, x: Tensor, dim: int, dtype: torch.dtype | None = None, *_: object) -> Tensor:
    """Softmax z = exp(x) / h with h constant, so that its derivative is z: R_x = 2 x z s, which has the sign of the
    logit x (its companion for |x|, as in `activation`, has the derivative sign(x) z)."""
    return 2 * z * s


@Formula
def layer_norm(
    s: Tensor, z: Tensor, x: Tensor, shape: list[int], w: Maybe = None, b: Maybe = None, eps: float = 1e-5, *_: object
) -> Tensor:
    """z = w u + b with u = (x − mean) / σ, as in 2024-04: `absolute` gives u the cotangent (w + sign(u) |w|) s, and x
    gets 1/σ of that, because mean and σ are constant."""
    return _standardized(s, x, x.ndim - len(shape), w, eps)


@Formula
def group_norm(
    s: Tensor, z: Tensor, x: Tensor, groups: int, w: Maybe = None, b: Maybe = None, eps: float = 1e-5, *_: object
) -> Tensor:
    """Group norm: as layer norm, over each group of channels."""
    s, x = s.unflatten(1, (groups, -1)), x.unflatten(1, (groups, -1))
    w = None if w is None else w.view(groups, -1, *[1] * (x.ndim - 3))
    return _standardized(s, x, 2, w, eps).flatten(1, 2)


@Formula
def instance_norm(
    s: Tensor,
    z: Tensor,
    x: Tensor,
    w: Maybe,
    b: Maybe,
    mean: Maybe,
    var: Maybe,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: object,
) -> Tensor:
    """Instance norm: as layer norm, over each channel; with running statistics, as batch norm."""
    if not use_input_stats and var is not None:
        return _affine(s, x, w, var, eps)
    return _standardized(s, x, 2, w if w is None else per_channel(w, x), eps)


def standardize(x: Tensor, first: int, eps: float) -> tuple[Tensor, Tensor]:
    """u = (x − mean) / σ, and σ, over the axes from `first` on."""
    dims = list(range(first, x.ndim))
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    sigma = (variance + eps).sqrt()
    return (x - mean) / sigma, sigma


def _standardized(s: Tensor, x: Tensor, first: int, w: Maybe, eps: float) -> Tensor:
    u, sigma = standardize(x, first, eps)
    w = torch.ones_like(u) if w is None else w
    return (w + u.sign() * w.abs()) * s / sigma


@Formula
def batch_norm(
    s: Tensor,
    z: Tensor,
    x: Tensor,
    w: Maybe,
    b: Maybe,
    mean: Maybe,
    var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    *_: object,
) -> Tensor:
    """A batch norm with no product before it to fold into: one affine op, R_x = 2 (γx)⁺ s / √(v + ε)."""
    return _affine(s, x, w, var, eps)


def _affine(s: Tensor, x: Tensor, w: Maybe, var: Tensor, eps: float) -> Tensor:
    scale = per_channel(norm_scale(w, var, eps), x)
    return (scale + x.sign() * scale.abs()) * s


def norm_scale(w: Maybe, var: Tensor, eps: float) -> Tensor:
    """γ / √(v + ε), a factor per channel."""
    scale = (var + eps).rsqrt()
    return scale if w is None else w * scale


def per_channel(w: Tensor, x: Tensor) -> Tensor:
    """A factor per channel [C], shaped so that x [B, C, …] is multiplied by it."""
    return w.view(-1, *[1] * (x.ndim - 2))


@Formula
def centred(s: Tensor, z: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, None]:
    """x − mean(x) with the mean as a constant, as in a layer norm with γ > 0: R_x = 2 x u⁺ s / u, u = x − mean."""
    return 2 * where_positive(s, z), None


@Formula
def gate(s: Tensor, z: Tensor, x: Tensor, *constants: Tensor, op: Callable[..., Tensor]) -> Tensor:
    """x · gate(x) written out: the rule of an activation, as for the fused ops."""
    return activation.formula(s, z, x, *constants, op=op)
