"""Quantised layers, steps, autocast, adapters and parametrised weights, compiled and scripted modules."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from benchmarks.situation_models import Case, Net, case, ids, mlp, param, randn

SINGLE = {"double": False, "tolerance": 1e-4}  # kernels that know no float64


def _quantised(make: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(torch.ao.quantization)


@case("quantised")
def dynamic_int8() -> Case:
    """Linear layers quantised dynamically by torch.ao"""
    model = _quantised(lambda ao: ao.quantize_dynamic(mlp(8, 16, 4), {nn.Linear}, torch.qint8))
    return Case(model, (randn(3, 8),), derivable=False, axis=None, **SINGLE)


@case("quantised")
def static_int8() -> Case:
    """A convolutional network quantised statically: observed, converted, with stubs at both ends"""

    def make(ao: Any) -> nn.Module:
        net = nn.Sequential(ao.QuantStub(), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        net = nn.Sequential(*net, ao.DeQuantStub()).eval()
        net.qconfig = ao.get_default_qconfig(torch.backends.quantized.engine)
        ready = ao.prepare(net)
        ready(randn(8, 1, 6, 6))
        return ao.convert(ready)

    return Case(_quantised(make), (randn(2, 1, 6, 6),), derivable=False, **SINGLE)


@case("quantised")
def weights_only_by_hand() -> Case:
    """Weights kept as int8 with a scale for each row, taken back to floats at every call"""

    class Linear8(Net):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.q.to(x.dtype) * self.scale, self.bias)

    def layer(a: int, b: int) -> nn.Module:
        return Linear8(q=torch.randint(-127, 128, (b, a), dtype=torch.int8), scale=torch.rand(b, 1) / 99, bias=param(b))

    return Case(nn.Sequential(layer(6, 8), nn.ReLU(), layer(8, 3)), (randn(3, 6),))


@case("quantised")
def packed_four_bits() -> Case:
    """Two weights of four bits in a byte, unpacked by shifts, zero points for groups"""

    class Linear4(Net):
        def forward(self, x: Tensor) -> Tensor:
            q = torch.stack([self.q & 15, self.q >> 4], -1).flatten(1).to(x.dtype)
            w = (q.view(len(q), -1, 4) - self.zero) * self.scale
            return F.linear(x, w.flatten(1))

    q = torch.randint(0, 256, (6, 4), dtype=torch.uint8)
    four = Linear4(q=q, zero=torch.full((6, 2, 1), 8.0), scale=torch.rand(6, 2, 1) / 9)
    return Case(nn.Sequential(four, nn.ReLU(), nn.Linear(6, 3)), (randn(3, 8),))


@case("quantised")
def fake_quantised() -> Case:
    """Training aware of quantisation: fake-quantised weights and activations"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)
            w = torch.fake_quantize_per_channel_affine(self.w, self.scale, self.zero, 0, -128, 127)
            return self.head(F.relu(F.linear(x, w)))

    parts = {"scale": torch.full((8,), 0.02), "zero": torch.zeros(8, dtype=torch.int32)}
    return Case(M(w=param(8, 6), head=nn.Linear(8, 3), **parts), (randn(3, 6),), **SINGLE)


@case("quantised")
def quantised_embedding() -> Case:
    """A table of words in int8, each row with its scale"""

    class M(Net):
        def forward(self, words: Tensor) -> Tensor:
            return self.head((self.table[words].to(self.scale.dtype) * self.scale[words]).mean(1))

    table = torch.randint(-127, 128, (20, 6), dtype=torch.int8)
    return Case(M(table=table, scale=torch.rand(20, 1) / 50, head=nn.Linear(6, 3)), (ids(20, 2, 5),))


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0].abs() <= 1)


@case("steps")
def binarised_activations() -> Case:
    """Signs with a backward pass of their own, clipped"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(_Sign.apply(self.first(x)))

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(3, 6),))


@case("steps")
def straight_through_rounding() -> Case:
    """x + (round(x) − x).detach()"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.first(x)) * 4
            return self.head(h + (h.round() - h).detach())

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(3, 6),))


@case("steps")
def plain_rounding() -> Case:
    """Rounding with no derivative, as an exported quantiser has it"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.first(x) * 4).round() / 4)

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(3, 6),), derivable=False)


@case("steps")
def reversed_gradient() -> Case:
    """Domain adaptation: a layer whose backward pass turns the gradient's sign"""

    class Turn(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return -g

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(Turn.apply(F.relu(self.first(x))))

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 2)), (randn(3, 6),))


@case("steps")
def vector_quantised() -> Case:
    """VQ-VAE: each vector replaced by the nearest of a code book, straight through"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            z = self.encode(x)
            near = self.codes[torch.cdist(z, self.codes.expand(len(z), -1, -1)).argmin(-1)]
            return self.head((z + (near - z).detach()).flatten(1))

    model = M(encode=mlp(4, 8, 3), codes=param(5, 3), head=nn.Linear(9, 2))
    return Case(model, (randn(2, 3, 4),))


@case("steps")
def spiking_neurons() -> Case:
    """Leaky integrate and fire with a surrogate gradient, reset by subtraction"""

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, v: Tensor) -> Tensor:
            ctx.save_for_backward(v)
            return (v > 0).to(v.dtype)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g / (1 + 10 * ctx.saved_tensors[0].abs()).pow(2)

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            v, total = 0, 0
            for t in range(x.shape[1]):
                v = 0.8 * v + self.first(x[:, t])
                s = Spike.apply(v - 0.3)
                v = v - s * 0.3
                total = total + self.head(s)
            return total

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(2, 4, 6),))


@case("steps")
def hard_choice_of_experts() -> Case:
    """A one-hot choice that stands for its softmax in the backward pass"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            soft = self.choose(x).softmax(1)
            hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
            w = hard - soft.detach() + soft
            return torch.stack([e(x) for e in self.experts], 1).mul(w.unsqueeze(-1)).sum(1)

    return Case(M(choose=nn.Linear(6, 3), experts=nn.ModuleList([nn.Linear(6, 4) for _ in range(3)])), (randn(3, 6),))


@case("steps")
def checkpointed_blocks() -> Case:
    """Blocks run under torch.utils.checkpoint"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            return self.head(x)

    return Case(M(blocks=nn.ModuleList([mlp(6, 8, 6), mlp(6, 8, 6)]), head=nn.Linear(6, 3)), (randn(3, 6),))


@case("autocast")
def autocast_inside() -> Case:
    """torch.autocast to bfloat16 inside forward, and floats again before the head"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                h = self.body(x)
            return self.head(h.float())

    return Case(M(body=mlp(6, 8, 6), head=nn.Linear(6, 3)), (randn(2, 6),), derivable=False, **SINGLE)


@case("autocast")
def autocast_switched_off() -> Case:
    """A part that switches autocast off for itself, its input cast to floats"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.first(x))
            with torch.autocast("cpu", enabled=False):
                h = self.norm(h.float())
            return self.head(h)

    return Case(M(first=nn.Linear(6, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 3)), (randn(2, 6),), **SINGLE)


@case("autocast")
def decorated_forward() -> Case:
    """forward with torch.autocast as its decorator"""

    class M(Net):
        @torch.autocast("cpu", torch.bfloat16)
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.gelu(self.first(x)))

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(2, 6),), derivable=False, **SINGLE)


@case("autocast")
def model_in_half_precision() -> Case:
    """All weights in bfloat16"""
    return Case(mlp(6, 8, 3).bfloat16(), (randn(2, 6).bfloat16(),), derivable=False, double=False, tolerance=0.02)


@case("autocast")
def norms_kept_in_floats() -> Case:
    """A model in half precision whose norm is computed in floats and cast back"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h = F.layer_norm(h.float(), (8,)).type_as(h)
            return self.head(h).float()

    model = M(first=nn.Linear(6, 8), head=nn.Linear(8, 3)).bfloat16()
    return Case(model, (randn(2, 6).bfloat16(),), derivable=False, double=False, tolerance=0.02)


@case("autocast")
def inference_mode_inside() -> Case:
    """forward decorated with torch.no_grad, as wrappers for serving are"""

    class M(Net):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    return Case(M(net=mlp(6, 8, 3)), (randn(2, 6),), derivable=False)


@case("weights")
def lora_by_hand() -> Case:
    """LoRA: a frozen linear layer and a product of two small ones beside it"""

    class Lora(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.dropout(x) @ self.a.T @ self.b.T * 0.5

    def layer(m: int, n: int) -> nn.Module:
        return Lora(base=nn.Linear(m, n).requires_grad_(False), a=param(2, m), b=param(n, 2), dropout=nn.Dropout(0.1))

    return Case(nn.Sequential(layer(6, 8), nn.ReLU(), layer(8, 3)), (randn(3, 6),))


@case("weights")
def lora_as_a_parametrisation() -> Case:
    """LoRA by torch.nn.utils.parametrize"""

    class Add(Net):
        def forward(self, w: Tensor) -> Tensor:
            return w + self.b @ self.a

    model = mlp(6, 8, 3)
    parametrize.register_parametrization(model[0], "weight", Add(a=param(2, 6), b=param(8, 2)))
    return Case(model, (randn(3, 6),))


@case("weights")
def normed_weights() -> Case:
    """Weight norm, spectral norm and an orthogonal matrix, by torch's parametrisations"""
    layers = (parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(8, 8)))
    model = nn.Sequential(*layers, nn.ReLU(), parametrizations.orthogonal(nn.Linear(8, 3)))
    return Case(model, (randn(3, 6),))


@case("weights")
def old_weight_norm_hooks() -> Case:
    """The older weight and spectral norms, which are hooks that set an attribute before each call"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = nn.utils.weight_norm(nn.Linear(6, 8))
    return Case(nn.Sequential(first, nn.ReLU(), nn.utils.spectral_norm(nn.Linear(8, 3))), (randn(3, 6),))


@case("weights")
def pruned() -> Case:
    """Pruned layers, whose masks are buffers and whose weight is made by a hook"""
    model = mlp(6, 8, 3)
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.ln_structured(model[2], "weight", 0.25, 2, 1)
    return Case(model, (randn(3, 6),))


@case("weights")
def tied_autoencoder() -> Case:
    """An autoencoder that decodes by the transpose of what it encodes by, its error the score"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.sigmoid(F.linear(x, self.w, self.b))
            return (F.linear(h, self.w.t(), self.c) - x).square().mean(1)

    return Case(M(w=param(4, 6), b=param(4), c=param(6)), (randn(3, 6),))


@case("weights")
def one_layer_many_times() -> Case:
    """The same block used at every depth, and under two names"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            for block in (self.block, self.same, self.block):
                x = x + F.relu(block(x))
            return self.head(x)

    block = nn.Linear(6, 6)
    return Case(M(block=block, same=block, head=nn.Linear(6, 3)), (randn(3, 6),))


@case("weights")
def hypernetwork() -> Case:
    """Weights made by a network from a second input, a matrix for each sample"""

    class M(Net):
        def forward(self, x: Tensor, task: Tensor) -> Tensor:
            w = self.hyper(task).view(-1, 5, 6)
            return self.head(F.relu(torch.bmm(w, x.unsqueeze(2)).squeeze(2)))

    return Case(M(hyper=mlp(3, 8, 30), head=nn.Linear(5, 3)), (randn(2, 6), randn(2, 3)))


@case("weights")
def weights_in_a_plain_list() -> Case:
    """Weights in a ParameterList and a ParameterDict, and a plain tensor as an attribute"""

    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ws = nn.ParameterList([param(8, 6), param(3, 8)])
            self.bs = nn.ParameterDict({"one": param(8), "two": param(3)})
            self.scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(F.linear(x, self.ws[0], self.bs["one"]))
            return F.linear(h, self.ws[1], self.bs["two"]) * self.scale

    return Case(M(), (randn(3, 6),))


@case("weights")
def weights_cut_in_place() -> Case:
    """A low-rank layer from slices of one large matrix, a network that can be made slimmer"""

    class M(Net):
        def forward(self, x: Tensor, width: int = 4) -> Tensor:
            h = F.relu(F.linear(x, self.w1[:width], self.b1[:width]))
            return F.linear(h, self.w2[:, :width])

    return Case(M(w1=param(8, 6), b1=param(8), w2=param(3, 8)), (randn(3, 6),), {"width": 5})


@case("compiled")
def scripted() -> Case:
    """torch.jit.script, with a branch on a shape"""

    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            if x.dim() == 1:
                x = x.unsqueeze(0)
            return self.net(x)

    return Case(torch.jit.script(M().eval()), (randn(3, 6),))


@case("compiled")
def traced() -> Case:
    """torch.jit.trace of a convolution with batch norm"""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model = torch.jit.trace(net.eval().double(), randn(2, 1, 6, 6).double())
    return Case(model, (randn(2, 1, 6, 6),))


@case("compiled")
def compiled() -> Case:
    """torch.compile, not yet run"""
    return Case(torch.compile(mlp(6, 8, 3, act=nn.GELU), backend="eager"), (randn(3, 6),))


@case("compiled")
def compiled_part() -> Case:
    """A module with a compiled function inside"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gate(self.first(x)))

    gate = torch.compile(lambda h: F.silu(h) * h.tanh(), backend="eager")
    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3), gate=gate), (randn(3, 6),))


@case("compiled")
def exported() -> Case:
    """The module of a program of torch.export, its batch dynamic"""
    net = mlp(6, 8, 3).eval().double()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (randn(2, 6).double(),), dynamic_shapes=shapes)
    return Case(program.module(), (randn(3, 6).double(),), double=False, evaluate=False)


@case("compiled")
def symbolically_traced() -> Case:
    """A GraphModule of torch.fx"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.first(x)) + 1)

    return Case(torch.fx.symbolic_trace(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3))), (randn(3, 6),))


@case("compiled")
def data_parallel() -> Case:
    """Wrapped in nn.DataParallel, and averaged over training by swa_utils"""
    averaged = torch.optim.swa_utils.AveragedModel(mlp(6, 8, 3))
    return Case(nn.DataParallel(averaged), (randn(3, 6),))


@case("compiled")
def custom_operator() -> Case:
    """An operator of the user's, by torch.library.custom_op, with its derivative"""
    if not hasattr(torch.ops.fxlrp_situations, "swish"):

        @torch.library.custom_op("fxlrp_situations::swish", mutates_args=())
        def swish(x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

        swish.register_fake(torch.empty_like)

        def backward(ctx: Any, g: Tensor) -> Tensor:
            s = ctx.saved_tensors[0].sigmoid()
            return g * (s + ctx.saved_tensors[0] * s * (1 - s))

        swish.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.ops.fxlrp_situations.swish(self.first(x)))

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(3, 6),))


@case("compiled")
def hooked() -> Case:
    """Forward hooks that change the output and keep it"""
    model = mlp(6, 8, 3)
    kept: dict[str, Tensor] = {}
    model[0].register_forward_hook(lambda m, args, out: kept.update(out=out.detach()) or out * 2)
    model.register_forward_pre_hook(lambda m, args: (args[0] - 0.1,))
    return Case(model, (randn(3, 6),))


@case("compiled")
def copied_and_patched() -> Case:
    """A copy whose forward is replaced by a function on the instance"""
    model = copy.deepcopy(mlp(6, 8, 3))
    model.forward = lambda x: model[2](F.elu(model[0](x)))
    return Case(model, (randn(3, 6),))
