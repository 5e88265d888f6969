"""Loops, early exits and experts, random models, and what models keep or write in place."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.situation_models import Case, Net, case, ids, mlp, param, randn


@case("loops")
def experts_in_a_loop() -> Case:
    """A mixture of experts: top-2 of a router, rows picked by `where`, results added in place"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            w, chosen = self.router(x).softmax(-1).topk(2, -1)
            w = w / w.sum(-1, keepdim=True)
            out = torch.zeros_like(x)
            for i, expert in enumerate(self.experts):
                row, which = torch.where(chosen == i)
                out.index_add_(0, row, expert(x[row]) * w[row, which, None])
            return self.head(x + out)

    experts = nn.ModuleList([mlp(6, 8, 6) for _ in range(3)])
    return Case(M(router=nn.Linear(6, 3), experts=experts, head=nn.Linear(6, 2)), (randn(4, 6),))


@case("loops")
def experts_all_at_once() -> Case:
    """All experts in stacked weights and one Einstein sum, the router's choice a scattered mask"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            scores = self.router(x)
            keep = torch.zeros_like(scores).scatter(1, scores.topk(2, 1).indices, 1.0)
            w = scores.masked_fill(keep == 0, float("-inf")).softmax(1)
            h = F.gelu(torch.einsum("bi,eio->beo", x, self.w1))
            return torch.einsum("beo,eok,be->bk", h, self.w2, w)

    return Case(M(router=nn.Linear(6, 4), w1=param(4, 6, 8), w2=param(4, 8, 3)), (randn(3, 6),))


@case("loops")
def early_exit() -> Case:
    """Leaves at the first head that is sure enough, by a branch on a value"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            for block, head in zip(self.blocks, self.heads, strict=True):
                x = F.relu(block(x))
                y = head(x)
                if y.softmax(-1).max() > 0.5:
                    return y
            return y

    blocks, heads = (nn.ModuleList([nn.Linear(6, n) for _ in range(3)]) for n in (6, 3))
    return Case(M(blocks=blocks, heads=heads), (randn(1, 6),))


@case("loops")
def exit_of_each_row() -> Case:
    """Each row keeps the answer of the head that was sure first, by torch.where"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            said, done = torch.zeros(len(x), 3).to(x), torch.zeros(len(x), dtype=torch.bool)
            for block, head in zip(self.blocks, self.heads, strict=True):
                x = F.relu(block(x))
                y = head(x)
                said = torch.where(done[:, None], said, y)
                done = done | (y.softmax(-1).amax(-1) > 0.45)
            return said

    blocks, heads = (nn.ModuleList([nn.Linear(6, n) for _ in range(3)]) for n in (6, 3))
    return Case(M(blocks=blocks, heads=heads), (randn(3, 6),))


@case("loops")
def adaptive_halting() -> Case:
    """Adaptive computation time: rows go on until their probabilities of halting add up, in a while loop"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            total, out, step = torch.zeros(len(x), 1).to(x), torch.zeros_like(x), 0
            while bool((total < 0.99).any()) and step < 4:
                x = torch.tanh(self.step(x))
                p = torch.minimum(self.halt(x).sigmoid(), 1 - total)
                out = out + p * x
                total = total + p
                step += 1
            return self.head(out)

    return Case(M(step=nn.Linear(6, 6), halt=nn.Linear(6, 1), head=nn.Linear(6, 3)), (randn(3, 6),))


@case("loops")
def branch_of_each_row() -> Case:
    """Rows sent to one of two networks by their first number, written back by a mask"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            up = x[:, 0] > 0
            y = x.new_empty(len(x), 3)
            y[up], y[~up] = self.one(x[up]), self.two(x[~up])
            return y

    x = randn(3, 6)
    x[0, 0], x[1, 0] = 1.0, -1.0
    return Case(M(one=mlp(6, 8, 3), two=mlp(6, 8, 3)), (x,))


@case("loops")
def torch_cond() -> Case:
    """torch.cond between two functions"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda v: self.one(v), lambda v: self.two(v), (x,))

    return Case(M(one=nn.Linear(6, 3), two=nn.Linear(6, 3)), (randn(1, 6),))


@case("loops")
def branch_on_shapes() -> Case:
    """Sequences longer than a window in pieces, others whole, padded to a multiple of four"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] % 4:
                x = F.pad(x, (0, 0, 0, 4 - x.shape[1] % 4))
            if x.shape[1] > 4:
                return torch.stack([self.net(part).mean(1) for part in x.split(4, 1)]).mean(0)
            return self.net(x).mean(1)

    return Case(M(net=mlp(5, 8, 3)), (randn(2, 7, 5),))


@case("loops")
def nested_modules() -> Case:
    """Modules in lists in dicts, called by the name that an argument gives, through a partial"""

    class M(Net):
        def forward(self, x: Tensor, task: str = "a") -> Tensor:
            for layer in self.towers[task]:
                x = self.act(layer(x))
            return x

    towers = nn.ModuleDict({k: nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 3)]) for k in "ab"})
    return Case(
        M(towers=towers, act=functools.partial(F.leaky_relu, negative_slope=0.2)), (randn(3, 6),), {"task": "b"}
    )


@case("loops")
def tree_of_words() -> Case:
    """A recursive network over a tree given as nested tuples of positions"""

    class M(Net):
        def forward(self, words: Tensor, tree: Any) -> Tensor:
            def up(node: Any) -> Tensor:
                if isinstance(node, int):
                    return self.embed(words[:, node])
                return torch.tanh(self.join(torch.cat([up(node[0]), up(node[1])], 1)))

            return self.head(up(tree))

    model = M(embed=nn.Embedding(20, 6), join=nn.Linear(12, 6), head=nn.Linear(6, 2))
    return Case(model, (ids(20, 2, 4), ((0, 1), (2, 3))))


@case("loops")
def beam_of_states() -> Case:
    """Connectionist temporal alignment: a log-space dynamic programme over time, a score [B]"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            emit = self.net(x).log_softmax(-1)
            alpha = emit[:, 0] + self.start
            for t in range(1, x.shape[1]):
                alpha = torch.logsumexp(alpha.unsqueeze(2) + self.move, 1) + emit[:, t]
            return alpha.logsumexp(1)

    return Case(M(net=nn.Linear(5, 3), start=param(3), move=param(3, 3)), (randn(2, 4, 5),))


@case("random")
def dropout_left_on() -> Case:
    """Dropout in evaluation mode, for an ensemble of draws"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(F.relu(self.first(x)), 0.3, training=True))

    return Case(M(first=nn.Linear(6, 16), head=nn.Linear(16, 3)), (randn(1, 6),), axis=None)


@case("random")
def variational_autoencoder() -> Case:
    """A VAE that draws its code, the error of what it makes of it the score"""

    class M(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_var = self.encode(x).chunk(2, 1)
            z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
            return self.decode(z), mean, log_var

    model = M(encode=mlp(6, 8, 6), decode=mlp(3, 8, 6))
    return Case(model, (randn(1, 6),), target=lambda out: out[0][:, 2], axis=None)


@case("random")
def noise_at_the_input() -> Case:
    """Noise added to the input, and a seed of the model's own"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            g = torch.Generator().manual_seed(7)
            return self.net(x + 0.1 * torch.randn(x.shape, generator=g, dtype=x.dtype))

    return Case(M(net=mlp(6, 8, 3)), (randn(1, 6),), axis=None)


@case("random")
def gumbel_choice() -> Case:
    """A choice by gumbel_softmax, hard"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.gumbel_softmax(self.first(x), tau=0.7, hard=True))

    return Case(M(first=nn.Linear(6, 5), head=nn.Linear(5, 3)), (randn(1, 6),), axis=None)


@case("random")
def stochastic_depth() -> Case:
    """Blocks skipped at random, by a number drawn from torch"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                keep = torch.bernoulli(torch.full((len(x), 1), 0.7)).to(x)
                x = x + block(x) * keep
            return self.head(x)

    return Case(M(blocks=nn.ModuleList([mlp(6, 8, 6), mlp(6, 8, 6)]), head=nn.Linear(6, 3)), (randn(1, 6),), axis=None)


@case("random")
def training_mode() -> Case:
    """A model left in training mode: dropout, and batch norm by the batch's own statistics"""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    return Case(model.train(), (randn(4, 6),), axis=None, evaluate=False)


@case("random")
def sampled_distribution() -> Case:
    """A policy that makes a distribution and draws from it (rsample)"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            mean, scale = self.net(x).chunk(2, -1)
            return torch.distributions.Normal(mean, F.softplus(scale)).rsample()

    return Case(M(net=mlp(6, 8, 4)), (randn(1, 6),), axis=None)


@case("state")
def buffers_updated() -> Case:
    """A counter and a running mean that change at every call, in evaluation mode too"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
            return self.net(x)

    return Case(M(calls=torch.zeros(1, dtype=torch.long), mean=torch.zeros(6), net=mlp(6, 8, 3)), (randn(3, 6),))


@case("state")
def what_was_seen_is_kept() -> Case:
    """Activations kept in a list and an attribute, for a loss later"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.first(x))
            self.last = h
            self.seen.append(h.detach().mean())
            return self.head(h)

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3), seen=[]), (randn(3, 6),))


@case("state")
def cached_positions() -> Case:
    """Sines of positions in a buffer that grows with the longest sequence, cached by functools"""

    @functools.lru_cache
    def rates(n: int) -> Tensor:
        return torch.exp(-torch.arange(0, n, 2) / n)

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.table.shape[0] < x.shape[1]:
                at = torch.arange(x.shape[1])[:, None] * rates(x.shape[2])
                self.table = torch.cat([at.sin(), at.cos()], 1).to(x)
            return self.head(F.relu(self.mix(x + self.table[: x.shape[1]])).mean(1))

    return Case(M(table=torch.zeros(0, 6), mix=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(2, 5, 6),))


@case("state")
def slices_written_in_place() -> Case:
    """An output filled slice by slice, a column negated, a view transposed and added to"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(x.shape[0], 3, 4)
            for i in range(3):
                h[:, i] = F.relu(self.layers[i](x))
            h[:, 1] *= -1
            h.transpose(1, 2)[:, 0] += x[:, :3]
            h[:, 2, 1:3].clamp_(max=0.5)
            return self.head(h.flatten(1))

    return Case(M(layers=nn.ModuleList([nn.Linear(6, 4) for _ in range(3)]), head=nn.Linear(12, 3)), (randn(3, 6),))


@case("state")
def input_written_in_place() -> Case:
    """A model that norms its own input in place"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            x.sub_(self.mean).div_(self.std)
            return self.net(x)

    model = M(mean=torch.full((6,), 0.2), std=torch.full((6,), 1.5), net=mlp(6, 8, 3))
    return Case(model, (randn(3, 6),), derivable=False)


@case("state")
def masked_assignment() -> Case:
    """Boolean masks: numbers picked and set, a scatter by index_put"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h[h < -0.5] = -0.5
            y = torch.zeros_like(h)
            y[:, self.order] = h
            y.masked_fill_(self.drop, 0)
            return self.head(y)

    parts = {"order": torch.tensor([2, 0, 3, 1]), "drop": torch.tensor([False, True, False, False])}
    return Case(M(first=nn.Linear(6, 4), head=nn.Linear(4, 3), **parts), (randn(3, 6),))


@case("state")
def einops_like_reshapes() -> Case:
    """Axes split and joined by unflatten, movedim, stride tricks and as_strided windows"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).unflatten(-1, (2, 4)).movedim(2, 1).flatten(2)
            windows = h.unfold(-1, 3, 2).swapaxes(-1, -2)
            return self.head(windows.reshape(len(x), -1).contiguous().view(len(x), 3, -1).sum(1))

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(10, 3)), (randn(2, 3, 6),))


@case("state")
def numbers_read_by_item() -> Case:
    """A temperature read by .item() from a buffer, and a slope that is a property"""

    class M(Net):
        @property
        def slope(self) -> float:
            return float(self.temperature) / 10

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.leaky_relu(self.first(x), self.slope)) / self.temperature.item()

    return Case(M(temperature=torch.tensor(2.0), first=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(3, 6),))
