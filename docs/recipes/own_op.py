"""# An op we have never seen

It works by the generic rule, and the report says so; three lines give it a rule of its own.
"""

import torch
from torch import Tensor, nn

import fxlrp

torch.library.define("recipes::soft_clip", "(Tensor x) -> Tensor")
torch.library.impl("recipes::soft_clip", ["CompositeExplicitAutograd"], lambda x: x / (1 + x.abs()))
torch.library.register_fake("recipes::soft_clip", torch.empty_like)
torch.library.register_autograd(
    "recipes::soft_clip",
    lambda ctx, g: g / (1 + ctx.saved_tensors[0].abs()) ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.ops.recipes.soft_clip(self.a(x)))


torch.manual_seed(0)
net, x = Net().eval(), torch.randn(2, 5)
print(fxlrp.convert(net, x).report())


@fxlrp.rule(torch.ops.recipes.soft_clip.default)
def soft_clip(g: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """What comes to an activation goes through it: R = z g = x · (z g / x)."""
    return g * z / x


print(fxlrp.convert(net, x, strict=True).report())  # no op is without a rule now
fxlrp.explain(net, x).plot().savefig("out/recipes/own_op.png")
