"""The authors' code of December 2024 on a ResNet, its leak included (shared/oracles/2024-12/FORMULAS.md).

In their residual add the shortcut's share also gets x₂ ⊙ Jᵀ[(1 + sgn x₁) s] through the branch, J its ordinary
Jacobian, because both inputs hang together in autograd.  The rulebook `abslrp-2024-12` is their method without it; the
published GAE values of their method are made with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, one_hot, relu


def unit(r: Tensor) -> Tensor:
    return r / (r.abs().flatten(1).sum(1).view(-1, *[1] * (r.ndim - 1)) + 1e-9)


def over(r: Tensor, z: Tensor) -> Tensor:
    return r / (z.abs() + 1e-9)


def gradient(f: Callable[[Tensor], Tensor], x: Tensor, s: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x), x, s)[0]


def product(f: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    z = f(x, weight) if bias is None else f(x, weight) + bias.view(1, -1, *[1] * (x.ndim - 2))
    s = over(r, z)
    return unit(
        x * gradient(lambda t: f(t, weight), x, s) + x.abs() * gradient(lambda t: f(t, weight.abs()), x.abs(), s)
    )


def convolution(c: nn.Conv2d, x: Tensor, r: Tensor) -> Tensor:
    return product(lambda t, w: conv2d(t, w, None, c.stride, c.padding), c.weight, c.bias, x, r)


def batch_norm(b: nn.BatchNorm2d, x: Tensor, r: Tensor) -> Tensor:
    w, sigma = (t.view(1, -1, 1, 1) for t in (b.weight, (b.running_var + b.eps).sqrt()))
    return unit(over(r, b(x)) / sigma * (x * w + x.abs() * w.abs()))


def rectified(z: Tensor, r: Tensor) -> Tensor:
    return unit((z + z.abs()) * over(r, z))


def block(b: nn.Module, x: Tensor, r: Tensor | None, leak: bool) -> Tensor:
    """The block's output, or given relevance there, what reaches its input."""
    c1 = b.conv1(x)
    b1 = b.bn1(c1)
    r1 = relu(b1)
    c2 = b.conv2(r1)
    b2 = b.bn2(c2)
    d = None if b.downsample is None else b.downsample[0](x)
    short = x if d is None else b.downsample[1](d)
    if r is None:
        return relu(b2 + short)
    s = over(rectified(relu(b2 + short), r), b2 + short)
    mine, other = unit((b2 + b2.abs()) * s), (1 + short.sign()) * s
    if leak and d is None:
        other = other + gradient(lambda t: b.bn2(b.conv2(relu(b.bn1(b.conv1(t))))), x, (1 + b2.sign()) * s)
    other = unit(short * other)
    mine = convolution(b.conv2, r1, batch_norm(b.bn2, c2, mine))
    mine = convolution(b.conv1, x, batch_norm(b.bn1, c1, rectified(r1, mine)))
    return mine + (other if d is None else convolution(b.downsample[0], x, batch_norm(b.downsample[1], d, other)))


@torch.no_grad()
def explain(m: nn.Module, x: Tensor, target: Tensor, leak: bool = True) -> Tensor:
    """Contrastive relevance [n, C, H, W] of a timm ResNet of basic blocks."""
    c1 = m.conv1(x)
    b1 = m.bn1(c1)
    r1 = relu(b1)
    h = m.maxpool(r1)
    blocks, inputs = [b for layer in (m.layer1, m.layer2, m.layer3, m.layer4) for b in layer], []
    for b in blocks:
        inputs.append(h)
        h = block(b, h, None, leak)
    pooled = h.mean((2, 3))
    onehot = one_hot(target, m.fc.out_features).to(x)
    sides = []
    for seed in (onehot, (1 - onehot) / (m.fc.out_features - 1)):
        r = product(linear, m.fc.weight, m.fc.bias, pooled, unit(seed))
        r = unit((h + h.abs()) * over(r, pooled)[..., None, None] / h[0, 0].numel())
        for b, a in zip(reversed(blocks), reversed(inputs), strict=True):
            r = block(b, a, r, leak)
        r = unit(2 * r1 * gradient(m.maxpool, r1, over(r, m.maxpool(r1))))
        sides.append(convolution(m.conv1, x, batch_norm(m.bn1, c1, rectified(r1, r))))
    return sides[0] - sides[1]
