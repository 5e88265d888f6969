"""Kernels: which rules have a faster form, for which ops, and whether it keeps the sign of relevance."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxlrp.engine.replaced import ByRule
from fxlrp.fast import convolutions, elementwise, norms, products, weighted
from fxlrp.fast.contributions import Contributions, entrywise
from fxlrp.fast.products import MATMULS
from fxlrp.ops import of_kind, overloads
from fxlrp.rules import absolute, passing, signed
from fxlrp.rules import weighted as formulas

aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """A faster form of a rule at an op.

    contributions: called as (z, *args, **kwargs), returns the contributions that the rule shares relevance by, if it
        does.
    rule: is called in the place of the rule, with the same arguments.
    keeps_sign: whether R_i has the sign of the relevance it comes from.
    """

    contributions: Callable[..., Contributions] | None = None
    rule: Callable[..., Tensor] | None = None
    keeps_sign: bool = True

    def wants(self, keyword: str) -> bool:
        """Whether the kernel takes this keyword: "op", "nonneg" (whether x ≥ 0), "nonnegs" (the same of each argument
        that takes relevance)."""
        form = self.contributions or self.rule
        return form is not None and keyword in inspect.signature(form).parameters


def _turning(contributions: Callable[..., Contributions]) -> Kernel:
    return Kernel(contributions, keeps_sign=False)


KernelKey = tuple[Callable, "Callable | None", "tuple[int, ...] | None"]


def _for_ops(rule: Callable, argnums: tuple[int, ...], kernel: Kernel, *ops: Callable) -> dict[KernelKey, Kernel]:
    return {(rule, op, argnums): kernel for packet in ops for op in overloads(packet)}


KERNELS: dict[KernelKey, Kernel] = {
    **_for_ops(absolute.absolute, (0,), Kernel(products.linear), aten.linear),
    **_for_ops(absolute.absolute, (0,), Kernel(convolutions.convolution), *of_kind("convolution")),
    **_for_ops(absolute.absolute, (0,), Kernel(products.right_weight), *MATMULS),
    **_for_ops(absolute.absolute, (1,), Kernel(products.left_weight), *MATMULS),
    **_for_ops(absolute.absolute, (0, 1), Kernel(products.matmul), *MATMULS),
    **_for_ops(absolute.absolute, (1,), Kernel(products.addmm), aten.addmm.default),
    **_for_ops(absolute.absolute, (0, 1), Kernel(elementwise.mul), aten.mul.Tensor, aten.multiply.Tensor),
    (absolute.add, None, (0,)): Kernel(elementwise.shift),
    (absolute.add, None, (1,)): Kernel(elementwise.shift_right),
    (absolute.add, None, (0, 1)): Kernel(elementwise.add),
    (absolute.sub, None, (0,)): Kernel(elementwise.shift),
    (absolute.sub, None, (1,)): Kernel(elementwise.shift_minus),
    (absolute.sub, None, (0, 1)): Kernel(elementwise.sub),
    (absolute.rsub, None, None): Kernel(elementwise.rsub),
    (absolute.positive_sum, None, None): Kernel(products.positive_sum),
    (absolute.grouped_mm, None, None): Kernel(products.grouped_mm),
    (absolute.activation, None, None): Kernel(elementwise.activation),
    (absolute.gate, None, None): Kernel(elementwise.activation),
    (absolute.exp, None, None): Kernel(entrywise(absolute.exp)),
    (absolute.batch_norm, None, None): Kernel(entrywise(absolute.batch_norm)),
    (absolute.centred, None, None): _turning(entrywise(absolute.centred)),
    (absolute.softmax, None, None): _turning(norms.softmax),
    (absolute.layer_norm, None, None): _turning(norms.layer_norm),
    (absolute.group_norm, None, None): _turning(norms.group_norm),
    (absolute.instance_norm, None, None): _turning(norms.instance_norm),
    (absolute.logsumexp, None, None): Kernel(),
    (passing.div, None, None): Kernel(),
    (passing.rms_norm, None, None): Kernel(),
    (passing.rounding, None, None): Kernel(),
    (signed.identity, None, None): Kernel(rule=elementwise.identity, keeps_sign=False),
    (signed.layer_norm, None, None): Kernel(rule=norms.signed_layer_norm, keeps_sign=False),
}
WEIGHTED: dict[Callable, Callable] = {
    formulas.alpha_beta: weighted.alpha_beta,
    formulas.z_plus: weighted.z_plus,
    formulas.gamma: weighted.gamma,
}


def kernel_of(replaced: ByRule) -> Kernel | None:
    """The kernel of a rule at its op, if there is one."""
    rule, op = replaced.rule.fn, replaced.product
    if isinstance(rule, formulas.Weighted):
        kernel = WEIGHTED.get(rule.rule)
        return None if kernel is None else Kernel(rule=weighted.InPieces(kernel, rule), keeps_sign=False)
    keys = ((rule, op, replaced.argnums), (rule, None, replaced.argnums), (rule, None, None))
    return next((KERNELS[key] for key in keys if key in KERNELS), None)
