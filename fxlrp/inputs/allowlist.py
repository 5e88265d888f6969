"""Say what a pickled model may name: layers, configs, activations, enums, and plain data.

None of these reaches code that a file could choose: classes whose construction or state-setting could are left out, and
numpy's builders and functools.partial are replaced by stand-ins.
"""

from __future__ import annotations

import enum
import re
from collections import OrderedDict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from fxlrp.errors import FxlrpError, missing

# Where layers live.  Not here, because making or running theirs can run code: torch.jit, torch.fx, torch.package,
# torch.distributed, torch.ao, torch.hub, transformers' generation, pipelines, integrations and remote code.
_HOMES = re.compile(
    r"torch\.nn\.modules(\.\w+)+"
    r"|torch\.nn\.parallel\.data_parallel\.DataParallel"
    r"|torchvision\.(models|ops)(\.\w+)+"
    r"|timm\.(models|layers)(\.\w+)+"
    r"|transformers\.(activations|pytorch_utils|modeling_layers)\.\w+"
    r"|transformers\.models\.\w+\.(modeling|configuration)_\w+\.\w+"
    r"|transformers\.generation\.configuration_utils\.\w+"
)
_SPECIAL = ("__new__", "__reduce__", "__reduce_ex__", "__getattribute__", "__del__")

# Activations that models keep as attributes.  Not torch.nn.functional at large: some of its names call other names.
FUNCTIONS = frozenset(
    f"{home}.{name}"
    for home in ("torch.nn.functional", "torch._C._nn")
    for name in (
        *("relu", "relu6", "relu_", "leaky_relu", "elu", "elu_", "selu", "celu", "gelu", "silu", "mish", "softplus"),
        *("sigmoid", "logsigmoid", "log_sigmoid", "hardsigmoid", "hardswish", "hardtanh", "tanh", "tanhshrink"),
        *("softsign", "softshrink", "hardshrink", "softmax", "log_softmax", "softmin", "glu", "prelu", "normalize"),
    )
)

# What REDUCE may call, by its name or by that of its stand-in below.
CALLS = frozenset(
    {
        *("collections.OrderedDict", "builtins.set", "builtins.complex", "builtins.bytearray", "_codecs.encode"),
        *("torch.Size", "torch.device", "torch.serialization._get_layout", "functools.partial"),
        *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3")),
        *(f"torch._utils._rebuild_parameter{more}" for more in ("", "_with_state")),
        *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
        *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    }
)


class Inert:
    """Stands in for what lies beside the weights and is never called or read: a functools.partial, which a model keeps
    from its construction, and what trainers note down."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class Dtype:
    """Stands in for numpy.dtype: numbers and booleans only, no object and no structured types."""

    def __init__(self, code: str, *flags: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufc](1|2|4|8|16)", code):
            raise FxlrpError(f"The file holds a numpy array of dtype {code!r}; only numbers are read without --trust.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class Array(np.ndarray):
    """Stands in for numpy.ndarray: rebuilt from numbers only."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype) or not isinstance(data, bytes):
            raise FxlrpError("The file holds a numpy array of something else than numbers; load it with --trust.")
        super().__setstate__((version, shape, dtype.dtype, fortran, data))


def _scalar(dtype: Dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype)[0]


RECORDS = frozenset(
    {
        *("argparse.Namespace", "types.SimpleNamespace"),
        *(f"pathlib.{more}{kind}Path" for more in ("", "_local.") for kind in ("", "Posix", "Windows", "Pure")),
        *(f"pathlib.{more}Pure{kind}Path" for more in ("", "_local.") for kind in ("Posix", "Windows")),
        *("datetime.datetime", "datetime.timedelta", "datetime.date"),
    }
)
"""What trainers keep beside the weights: settings, paths, times.  Nothing of it is read."""
NEVER_CALLED = RECORDS | {"functools.partial"}
DICTS = frozenset(
    {
        *(f"{home}.utilities.parsing.AttributeDict" for home in ("pytorch_lightning", "lightning.pytorch")),
        *(f"{home}.utilities.data.AttributeDict" for home in ("lightning_fabric", "lightning.fabric")),
    }
)
"""Dicts of trainers' own kinds, read as plain ones."""

STAND_INS: dict[str, Any] = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    **dict.fromkeys(NEVER_CALLED, Inert),
    **dict.fromkeys(DICTS, OrderedDict),
}
for _home in ("numpy.core.multiarray", "numpy._core.multiarray"):
    STAND_INS[f"{_home}.scalar"] = _scalar
    STAND_INS[f"{_home}._reconstruct"] = lambda *args: Array((0,), np.uint8)


def admit(name: str) -> Any:
    """Return the object to load for a global, or None if it is not on the allow-list.

    Raises FxlrpError for a layer of a package that is not installed.
    """
    if name in STAND_INS:
        return STAND_INS[name]
    home, _, last = name.rpartition(".")
    if name not in FUNCTIONS and not _HOMES.fullmatch(name):
        return None
    try:
        value = getattr(import_module(home), last)  # imports library modules only: _HOMES and FUNCTIONS name them
    except (ImportError, AttributeError) as error:
        package = home.partition(".")[0]
        if find_spec(package) is None and (absent := missing(package, f"The model, which has a {last},")):
            raise absent from error
        return None
    fine = (
        name in FUNCTIONS
        or _is_layer(value)
        or is_enum(value)
        or (home.startswith("transformers.") and _is_config(value))
    )
    return value if fine else None


def _is_layer(cls: Any) -> bool:
    """Tell whether cls is an nn.Module that torch.nn's code makes and gives its state, and that is not itself code."""
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        return False
    if issubclass(cls, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        return False
    setstate: Any = getattr(cls, "__setstate__")  # noqa: B009  mypy knows it is there, and calling it is not the point
    changed = any(getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in _SPECIAL)
    base: Any = getattr(nn.Module, "__setstate__")  # noqa: B009  once something was compiled, torch._dynamo's
    return not changed and (setstate is base or setstate.__module__.startswith("torch.nn.modules."))


def _is_config(cls: Any) -> bool:
    """Tell whether cls is a transformers configuration: attributes, and no state-setting of its own."""
    from transformers import GenerationConfig, PreTrainedConfig

    if not isinstance(cls, type) or not issubclass(cls, (PreTrainedConfig, GenerationConfig)):
        return False
    return not hasattr(cls, "__setstate__") and cls.__new__ is object.__new__ and cls.__reduce__ is object.__reduce__


def is_enum(cls: Any) -> bool:
    """Tell whether cls names a few words or numbers, so that calling it looks one of them up."""
    return isinstance(cls, type) and issubclass(cls, enum.Enum) and issubclass(cls, (str, int))
