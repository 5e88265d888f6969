"""Networks whose behaviour is built, and the attribution that is right for each in closed form.

Right is the Shapley value of each feature against a baseline of 0: of a sum of functions, each of a few features, it is
the sum of theirs.  Where the field holds another answer to be right (the winner of a maximum takes it all), that one
is accepted beside it.  After Yang et al., "XAI-Units", FAccT 2025 (2506.01059), which builds networks alike.

Scores are above 0 for every input, so that what knows positive contributions alone has something to distribute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fxlrp.gae.known.cases import Case, Known, generator, right
from fxlrp.gae.known.layouts import LAYOUTS, put
from fxlrp.gae.known.networks import Additive, Interacting, Maximum, MaxOfReLUs, Minimum, Or, Product, Saws

SAMPLES = 8
LARGE = 20.0  # what switches a unit off


class Built(NamedTuple):
    """A network of features [n, d] → [n, 1], features, and the answers that are right for them, each [n, d]."""

    net: nn.Module
    z: Tensor
    answers: tuple[Tensor, ...]


@dataclass(frozen=True)
class Kind:
    """How a kind of network is made, and how much of all relevance may be misplaced."""

    make: Callable[[torch.Generator], Built]
    tolerance: float = 0.05


def uniform(g: torch.Generator, *shape: int, low: float = 0.5, high: float = 1.5) -> Tensor:
    """Numbers between low and high."""
    return low + (high - low) * torch.rand(*shape, generator=g, dtype=torch.float64)


def signed(g: torch.Generator, *shape: int) -> Tensor:
    """Numbers of either sign, away from 0."""
    return uniform(g, *shape) * (2.0 * torch.randint(2, shape, generator=g) - 1)


def bits(g: torch.Generator, d: int) -> Tensor:
    """Zeros and ones [·, d]: all of d ones, then every other pattern in some order."""
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1])] * d).double()
    return torch.cat([every[-1:], every[torch.randperm(len(every) - 1, generator=g)]])


def dense(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer of these weights [out, in]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def hidden(first: Tensor, bias: Tensor | None, second: Tensor, act: nn.Module | None = None) -> nn.Module:
    """Two linear layers with a ReLU between."""
    return nn.Sequential(dense(first, bias), act or nn.ReLU(), dense(second))


def chosen(net: nn.Module, drawn: Tensor, least: float = 0.3) -> Tensor:
    """The first samples whose score is at least so much."""
    with torch.no_grad():
        kept = drawn[net(drawn)[:, 0] >= least][:SAMPLES]
    assert len(kept) == SAMPLES, "too few samples of a positive score"
    return kept


def linear(g: torch.Generator) -> Built:
    """Σ w x, of either sign."""
    w = signed(g, 1, 6)
    net = nn.Sequential(dense(w))
    z = chosen(net, signed(g, 200, 6))
    return Built(net, z, (w * z,))


def product(g: torch.Generator) -> Built:
    """a x₀x₁ + b x₂x₃, and a feature that plays no part: each factor has half."""
    c = uniform(g, 2)
    net = Product(c)
    z = chosen(net, signed(g, 200, 5))
    each = torch.stack([c[0] * z[:, 0] * z[:, 1], c[1] * z[:, 2] * z[:, 3]], 1).repeat_interleave(2, 1) / 2
    return Built(net, z, (torch.cat([each, torch.zeros(len(z), 1)], 1),))


def of_maximum(z: Tensor) -> tuple[Tensor, Tensor]:
    """Of the maximum of positive numbers: the winner takes all, and the Shapley value (Littlechild and Owen 1973)."""
    order = z.argsort(1)
    v = z.gather(1, order)
    steps = torch.diff(v, dim=1, prepend=torch.zeros(len(z), 1, dtype=z.dtype))
    shares = (steps / torch.arange(z.shape[1], 0, -1)).cumsum(1)
    winner = torch.zeros_like(z).scatter(1, z.argmax(1, keepdim=True), z.amax(1, keepdim=True))
    return torch.zeros_like(z).scatter(1, order, shares), winner


def maximum(g: torch.Generator) -> Built:
    """The maximum of positive numbers."""
    z = uniform(g, SAMPLES, 5)
    return Built(Maximum(), z, of_maximum(z))


def max_of_relus(g: torch.Generator) -> Built:
    """The maximum of four positive numbers by ReLUs, a + (b − a)⁺."""
    z = uniform(g, SAMPLES, 4)
    return Built(MaxOfReLUs(), z, of_maximum(z))


GROUPS = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.float64)


def conjunction(g: torch.Generator) -> Built:
    """a (x₀ ∧ x₁) + b (x₂ ∧ x₃ ∧ x₄): (Σ x − d + 1)⁺ of bits, the ones of a group that is on share alike."""
    c = uniform(g, 2)
    net = hidden(GROUPS, 1 - GROUPS.sum(1), c[None])
    z = chosen(net, bits(g, 5))
    on = (z @ GROUPS.T == GROUPS.sum(1)).double()
    return Built(net, z, (on * c / GROUPS.sum(1) @ GROUPS,))


def disjunction(g: torch.Generator) -> Built:
    """a (x₀ ∨ x₁) + b (x₂ ∨ x₃ ∨ x₄): Σ x − (Σ x − 1)⁺ of bits, the ones of a group share alike."""
    c = uniform(g, 2)
    net = Or(GROUPS, c)
    z = chosen(net, bits(g, 5))
    return Built(net, z, ((c / (z @ GROUPS.T).clamp(min=1)) @ GROUPS * z,))


def exclusive(g: torch.Generator) -> Built:
    """a (x₀ ⊻ x₁) + b (x₂ ⊻ x₃): s⁺ − 2 (s − 1)⁺ of bits' sums s; a bit that is on alone has all, two have nothing."""
    c = uniform(g, 2)
    pairs = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 1)
    first, bias = torch.cat([pairs, pairs]), torch.tensor([0.0, 0, -1, -1])
    net = hidden(first, bias, torch.cat([c, -2 * c])[None])
    z = chosen(net, bits(g, 4))
    alone = (z @ pairs.T == 1).double()
    return Built(net, z, ((alone * c) @ pairs * z,))


def additive(g: torch.Generator) -> Built:
    """x₀² + 2 x₁⁺ + 3 (−x₂)⁺ + x₃ + x₄³: each has its own function."""
    net = Additive()
    z = chosen(net, signed(g, 200, 5))
    a, b, c, d, e = z.T
    return Built(net, z, (torch.stack([a**2, 2 * b.relu(), 3 * (-c).relu(), d, e**3], 1),))


def uninformative(g: torch.Generator) -> Built:
    """Σ w x⁺, beside features that only enter units of weight 0, and units that cancel each other."""
    w = uniform(g, 3)
    eye, none = torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    first = torch.cat([torch.cat([eye, none], 1), torch.cat([none, eye], 1).repeat(3, 1)])
    second = torch.cat([w, torch.zeros(3), torch.ones(3), -torch.ones(3)])[None]
    net = hidden(first, None, second)
    z = uniform(g, SAMPLES, 6)
    return Built(net, z, (torch.cat([w * z[:, :3], torch.zeros(SAMPLES, 3)], 1),))


def duplicated(g: torch.Generator) -> Built:
    """a max(x₀, x₁) + b x₂ of two features that are equal: they share alike, by symmetry."""
    c = uniform(g, 2)
    net = hidden(torch.tensor([[1.0, 0, 0], [-1, 1, 0], [0, 0, 1]]), None, torch.stack([c[0], c[0], c[1]])[None])
    z = uniform(g, SAMPLES, 2)[:, [0, 0, 1]]
    return Built(net, z, (torch.stack([c[0] * z[:, 0] / 2, c[0] * z[:, 1] / 2, c[1] * z[:, 2]], 1),))


def saturated(g: torch.Generator) -> Built:
    """Σ w min(x, 1) as 1 − (1 − x)⁺, mostly where it is flat (Shrikumar et al. 2017, 1704.02685)."""
    w = uniform(g, 4)
    net = Minimum(w)
    z = uniform(g, SAMPLES, 4, low=0.5, high=3.5)
    return Built(net, z, (w * z.clamp(max=1),))


def saturated_tanh(g: torch.Generator) -> Built:
    """Σ w tanh(x) where tanh is nearly flat."""
    w, eye = uniform(g, 4), torch.eye(4, dtype=torch.float64)
    z = uniform(g, SAMPLES, 4, low=1.0, high=4.0)
    return Built(hidden(eye, None, w[None], nn.Tanh()), z, (w * z.tanh(),))


def shattered(g: torch.Generator) -> Built:
    """Σ w (x + a saw of 8 teeth as high as ⅒), whose gradient has another sign every sixteenth (Balduzzi 2017)."""
    w = uniform(g, 4)
    net = Saws(w, 0.1)
    z = uniform(g, SAMPLES, 4, low=0.1, high=0.9)
    with torch.no_grad():
        return Built(net, z, (w * net.each(z),))


def conflicting(g: torch.Generator) -> Built:
    """Σ a x⁺ − Σ b x⁺: evidence for and against, most of which cancels."""
    w = torch.cat([uniform(g, 3, low=0.8), -uniform(g, 3, high=1.2)])
    net = hidden(torch.eye(6, dtype=torch.float64), None, w[None])
    z = chosen(net, uniform(g, 400, 6) + torch.tensor([0.5, 0.5, 0.5, 0, 0, 0]), least=0.2)
    return Built(net, z, (w * z,))


def cancelling(g: torch.Generator) -> Built:
    """Σ (w x − 20 c)⁺: a bit c cancels x.  What is cancelled is due ½ and −½, or as by XAI-Units 1 and −1 of it."""
    w = uniform(g, 3)
    eye = torch.eye(3, dtype=torch.float64)
    net = hidden(torch.cat([w.diag(), -LARGE * eye], 1), None, torch.ones(1, 3, dtype=torch.float64))
    z = chosen(net, torch.cat([uniform(g, 16, 3), bits(g, 3).flip(0).repeat(2, 1)], 1))
    x, c = z[:, :3], z[:, 3:]
    return Built(net, z, (torch.cat([w * x * (1 - c / 2), -w * x * c / 2], 1), torch.cat([w * x, -w * x * c], 1)))


def interacting(g: torch.Generator) -> Built:
    """Σ x (a, or b where a bit z is 1): as Shapley values, or as given the bits, which then have nothing."""
    low, more = uniform(g, 2), uniform(g, 2)
    net = Interacting(low, more, LARGE)
    z = torch.cat([uniform(g, SAMPLES, 2), bits(g, 2).repeat(2, 1)], 1)
    x, bit = z[:, :2], z[:, 2:]
    shapley = torch.cat([x * (low + bit * more / 2), x * bit * more / 2], 1)
    return Built(net, z, (shapley, torch.cat([x * (low + bit * more), torch.zeros_like(x)], 1)))


KINDS: dict[str, Kind] = {
    "linear": Kind(linear),
    "product": Kind(product),
    "max": Kind(maximum),
    "max of ReLUs": Kind(max_of_relus),
    "and": Kind(conjunction),
    "or": Kind(disjunction),
    "xor": Kind(exclusive),
    "additive": Kind(additive),
    "uninformative": Kind(uninformative),
    "duplicated": Kind(duplicated),
    "saturated": Kind(saturated),
    "saturated tanh": Kind(saturated_tanh),
    "shattered": Kind(shattered),
    "conflicting": Kind(conflicting),
    "cancelling": Kind(cancelling),
    "interacting": Kind(interacting),
}


def build(kind: str, layout: str, seed: int) -> Known:
    """A network of a kind in a layout, with what is right of it."""
    made, where = KINDS[kind].make(generator(seed, kind)), LAYOUTS[layout]
    shape, places = where.places(len(made.z), made.z.shape[1], generator(seed, kind, layout))
    model = nn.Sequential(where.front(made.z.shape[1]), made.net).double().eval().requires_grad_(False)
    answers = [put(a.double(), shape, places) for a in made.answers]
    x = put(made.z.double(), shape, places)
    return right(model, x, torch.zeros(len(x), dtype=torch.long), *answers, tolerance=KINDS[kind].tolerance)


def cases(seed: int, folder: Path | None = None, samples: int | None = None) -> list[Case]:
    """Every kind of network in every layout; nothing is trained."""
    pairs = [(kind, layout) for kind in KINDS for layout in LAYOUTS]
    return [Case("built", f"{kind}, {layout}", partial(build, kind, layout, seed)) for kind, layout in pairs]
