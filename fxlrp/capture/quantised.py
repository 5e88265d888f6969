"""Models quantised by torch.ao: their ops on packed weights and quantised tensors, traced in floating point.

Such a model is explained as one with its weights unpacked, whose activations are rounded where it rounds them; by how
much they are rounded from one call to the next (dynamic quantisation) is left out.  It answers by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxlrp.capture.confine import only_here, replaced

RANGE = {torch.quint8: (0, 255), torch.qint8: (-128, 127), torch.qint32: (-(2**31), 2**31 - 1)}


class Packed:
    """Packed weights, as something that torch.export leaves alone: they are buffers of the module they belong to."""

    def __init__(self, thing: torch.ScriptObject, module: nn.Module, name: str) -> None:
        self.thing, self.module, self.names = thing, module, (f"{name}_weight", f"{name}_bias")
        weight, bias = thing.unpack()  # type: ignore[attr-defined]
        module.register_buffer(self.names[0], weight.dequantize())
        module.register_buffer(self.names[1], None if bias is None else bias.detach())

    def unpack(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they were."""
        weight, bias = (getattr(self.module, name) for name in self.names)
        return weight, bias

    def __getattr__(self, name: str) -> Any:
        return getattr(self.thing, name)


class PackedCell:
    """The packed weights of a layer that goes step by step; likewise."""

    def __init__(self, thing: torch.ScriptObject, module: nn.Module, name: str) -> None:
        *_, parts = thing.__getstate__()[0]  # type: ignore[index]
        self.parts = [Packed(part, module, f"{name}_{i}") for i, part in enumerate(parts)]

    def weights(self) -> tuple[Tensor | None, ...]:
        """Weights of inputs and of states, and the biases of both."""
        (w, b), (u, c) = (part.unpack() for part in self.parts)
        return w, u, b, c


def hide_packed(twin: nn.Module) -> bool:
    """Make what is packed in a model of our own something that can be traced; whether there is any."""
    found = False
    for module in twin.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.ScriptObject):
                cell = "CellParams" in str(value._type())
                if cell or hasattr(value, "unpack"):
                    vars(module)[name] = (PackedCell if cell else Packed)(value, module, name)
                    found = True
        if type(module).__module__.startswith("torch.ao.nn.quantized") and "scale" in module._buffers:
            for name in ("scale", "zero_point"):  # numbers, which quantising asks for as such
                scale = module._buffers.pop(name)
                vars(module)[name] = scale.item() if scale is not None and scale.numel() == 1 else scale
    return found


@contextmanager
def in_float() -> Iterator[None]:
    """Within it, what this thread computes on packed weights and quantised tensors is traced in floating point."""
    steps = (("quantized_lstm", torch.lstm), ("quantized_gru", torch.gru))
    with ExitStack() as stack:
        for name, op in steps:  # whose C++ takes nothing but what is packed
            instead = only_here(partial(_steps, op), getattr(torch, name))
            stack.enter_context(replaced(torch, name, instead))
        stack.enter_context(InFloat())
        yield


def _steps(op: Callable, *args: Any, **_: Any) -> Any:
    def unpacked(a: Any) -> Any:
        cells = isinstance(a, list) and isinstance(a[0], PackedCell)
        return [w for cell in a for w in cell.weights()] if cells else a

    return op(*map(unpacked, args))


class InFloat(TorchFunctionMode):
    """Within it, ops on quantised tensors are those on the numbers these stand for."""

    def __torch_function__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(op, "__name__", "")
        if op in (torch.quantize_per_tensor, torch.ops.aten.quantize_per_tensor):
            return rounded(*args, **kwargs)
        if name in ("dequantize", "int_repr"):
            return args[0]
        if isinstance(op, torch._ops.OpOverloadPacket) and op._qualified_op_name.startswith("quantized::"):
            return _float(name)(*args, **kwargs)
        return op(*args, **kwargs)


def rounded(x: Tensor, scale: float, zero_point: int, dtype: torch.dtype = torch.quint8) -> Tensor:
    """x as a quantised tensor would hold it."""
    low, high = ((end - int(zero_point)) * float(scale) for end in RANGE[dtype])
    return x + ((x.clamp(low, high) / float(scale)).round() * float(scale) - x).detach()


def _float(name: str) -> Callable:
    """A quantised op as one of numbers: the last two arguments say how its result is rounded, unless it is dynamic."""
    plain = name.removesuffix("_dynamic").removesuffix("_relu")
    op = PLAIN.get(plain)
    if op is None:
        raise NotImplementedError(f"quantized::{name} has no form in floating point here")

    def call(*args: Any, **kwargs: Any) -> Tensor:
        how: tuple = tuple(v for k, v in kwargs.items() if k.endswith(("scale", "zero_point")))
        if name.endswith("_dynamic"):
            rest = args[:2]
        elif how:
            rest = args
        else:
            how, rest = args[-2:], args[:-2]
        z = op(*rest)
        z = z.relu() if "_relu" in name else z
        return rounded(z, *how) if how else z

    return call


def _convolution(op: Callable) -> Callable:
    def call(x: Tensor, packed: Packed) -> Tensor:
        w, b = packed.unpack()
        how = packed.stride(), packed.padding(), packed.dilation(), packed.groups()
        return op(x, w, b, *how)

    return call


PLAIN: dict[str, Callable] = {
    "linear": lambda x, packed: F.linear(x, *packed.unpack()),
    "conv1d": lambda x, packed: _convolution(F.conv2d)(x.unsqueeze(-2), packed).squeeze(-2),
    "conv2d": _convolution(F.conv2d),
    "conv3d": _convolution(F.conv3d),
    "add": torch.add,
    "mul": torch.mul,
    "cat": torch.cat,
    "matmul": torch.matmul,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
}
"""Ops on quantised tensors, without what they are rounded by."""
