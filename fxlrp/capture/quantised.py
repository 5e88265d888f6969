"""Traces models quantised by torch.ao, with their packed weights and quantised tensors, in floating point.

Such a model is explained as one with unpacked weights whose activations are rounded where the model rounds them, except
under dynamic quantisation, where each call has its own scale.  The output comes from the model itself.
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
    """Packed weights as an object that torch.export ignores; the weights are buffers of the module they belong to."""

    def __init__(self, thing: torch.ScriptObject, module: nn.Module, name: str) -> None:
        self.thing, self.module, self.names = thing, module, (f"{name}_weight", f"{name}_bias")
        weight, bias = thing.unpack()  # type: ignore[attr-defined]
        module.register_buffer(self.names[0], weight.dequantize())
        module.register_buffer(self.names[1], None if bias is None else bias.detach())

    def unpack(self) -> tuple[Tensor, Tensor | None]:
        """The dequantised weight, and the bias."""
        weight, bias = (getattr(self.module, name) for name in self.names)
        return weight, bias

    def __getattr__(self, name: str) -> Any:
        return getattr(self.thing, name)


class PackedCell:
    """The packed weights of a recurrent layer, likewise."""

    def __init__(self, thing: torch.ScriptObject, module: nn.Module, name: str) -> None:
        *_, parts = thing.__getstate__()[0]  # type: ignore[index]
        self.parts = [Packed(part, module, f"{name}_{i}") for i, part in enumerate(parts)]

    def weights(self) -> tuple[Tensor | None, ...]:
        """The weights of inputs and of states, and the biases of both."""
        (w, b), (u, c) = (part.unpack() for part in self.parts)
        return w, u, b, c


def hide_packed(twin: nn.Module) -> bool:
    """Makes packed weights in the twin of a model traceable; returns whether there are any."""
    has_packed = False
    for module in twin.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.ScriptObject):
                cell = "CellParams" in str(value._type())
                if cell or hasattr(value, "unpack"):
                    vars(module)[name] = (PackedCell if cell else Packed)(value, module, name)
                    has_packed = True
        if type(module).__module__.startswith("torch.ao.nn.quantized") and "scale" in module._buffers:
            for name in ("scale", "zero_point"):  # quantising takes them as numbers
                scale = module._buffers.pop(name)
                vars(module)[name] = scale.item() if scale is not None and scale.numel() == 1 else scale
    return has_packed


@contextmanager
def in_float() -> Iterator[None]:
    """Within it, traces this thread's ops on packed weights and quantised tensors in floating point."""
    recurrent = (("quantized_lstm", torch.lstm), ("quantized_gru", torch.gru))
    with ExitStack() as stack:
        for name, op in recurrent:  # their C++ takes only packed weights
            in_floating_point = only_here(partial(_steps, op), getattr(torch, name))
            stack.enter_context(replaced(torch, name, in_floating_point))
        stack.enter_context(InFloat())
        yield


def _steps(op: Callable, *args: Any, **_: Any) -> Any:
    def unpacked(a: Any) -> Any:
        cells = isinstance(a, list) and isinstance(a[0], PackedCell)
        return [w for cell in a for w in cell.weights()] if cells else a

    return op(*map(unpacked, args))


class InFloat(TorchFunctionMode):
    """Within it, replaces ops on quantised tensors by ops on the numbers these stand for."""

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
    """x clamped and rounded to the values of a quantised tensor, with the gradient passed straight through."""
    low, high = ((end - int(zero_point)) * float(scale) for end in RANGE[dtype])
    return x + ((x.clamp(low, high) / float(scale)).round() * float(scale) - x).detach()


def _float(name: str) -> Callable:
    """A quantised op in floating point: its scale and zero point, its last two arguments or keywords, say how to round
    the result; a dynamic op has none."""
    plain = name.removesuffix("_dynamic").removesuffix("_relu")
    op = PLAIN.get(plain)
    if op is None:
        raise NotImplementedError(f"quantized::{name} has no form in floating point here")

    def call(*args: Any, **kwargs: Any) -> Tensor:
        rounding: tuple = tuple(v for k, v in kwargs.items() if k.endswith(("scale", "zero_point")))
        if name.endswith("_dynamic"):
            operands = args[:2]
        elif rounding:
            operands = args
        else:
            rounding, operands = args[-2:], args[:-2]
        z = op(*operands)
        z = z.relu() if "_relu" in name else z
        return rounded(z, *rounding) if rounding else z

    return call


def _convolution(op: Callable) -> Callable:
    def call(x: Tensor, packed: Packed) -> Tensor:
        w, b = packed.unpack()
        settings = packed.stride(), packed.padding(), packed.dilation(), packed.groups()
        return op(x, w, b, *settings)

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
"""Quantised ops in floating point, without the rounding."""
