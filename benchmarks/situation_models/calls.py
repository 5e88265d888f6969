"""Structures as arguments, several outputs, scores without a class, batch axes and shared inputs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.situation_models import Case, Net, case, ids, mlp, param, randn


@case("objects")
def dict_of_features() -> Case:
    """A dict of tensors as the only argument, from which one is left out"""

    class M(Net):
        def forward(self, batch: dict[str, Any]) -> Tensor:
            h = torch.cat([batch["numbers"], self.table(batch["kind"])], 1)
            return self.net(h if batch.get("extra") is None else h + batch["extra"])

    batch = {"numbers": randn(3, 4), "kind": ids(5, 3), "extra": None, "name": "train"}
    return Case(M(table=nn.Embedding(5, 2), net=mlp(6, 8, 3)), (batch,))


@case("objects")
def keywords_only() -> Case:
    """Keyword-only tensors with defaults, and **kwargs"""

    class M(Net):
        def forward(self, *, x: Tensor, scale: float = 1.0, bias: Tensor | None = None, **more: Any) -> Tensor:
            h = self.net(x) * scale
            return h if bias is None else h + bias + more["shift"]

    return Case(M(net=mlp(6, 8, 3)), (), {"x": randn(3, 6), "bias": randn(3, 3), "scale": 2.0, "shift": 0.5})


@dataclass
class Graph:
    x: Tensor
    edges: Tensor
    label: str = "none"

    @property
    def size(self) -> int:
        return len(self.x)


@case("objects")
def dataclass_with_properties() -> Case:
    """A dataclass with a property, a graph"""

    class M(Net):
        def forward(self, data: Graph) -> Tensor:
            h = F.relu(self.mix(data.x))
            into = torch.zeros(data.size, 8).to(h).index_add(0, data.edges[1], h[data.edges[0]])
            return self.head((h + into).mean(0, keepdim=True))

    data = Graph(randn(4, 5), torch.tensor([[0, 1, 2], [1, 2, 3]]))
    return Case(M(mix=nn.Linear(5, 8), head=nn.Linear(8, 3)), (data,), axis=None)


class Batch(NamedTuple):
    words: Tensor
    mask: Tensor


@case("objects")
def named_tuple() -> Case:
    """A named tuple of words and a mask"""

    class M(Net):
        def forward(self, batch: Batch) -> Tensor:
            keep = batch.mask.unsqueeze(-1)
            return self.head((self.embed(batch.words) * keep).sum(1) / keep.sum(1))

    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    return Case(M(embed=nn.Embedding(20, 6), head=nn.Linear(6, 3)), (Batch(ids(20, 2, 4), mask),))


@case("objects")
def namespace_with_a_list() -> Case:
    """A namespace that holds a list of tensors, changed by the model"""

    class M(Net):
        def forward(self, data: Any) -> Tensor:
            data.h = sum(layer(x) for layer, x in zip(self.layers, data.views, strict=True))
            return self.head(F.relu(data.h))

    layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(5, 8)])
    return Case(M(layers=layers, head=nn.Linear(8, 3)), (SimpleNamespace(views=[randn(2, 4), randn(2, 5)]),))


@case("objects")
def any_number_of_tensors() -> Case:
    """*args of tensors, nested tuples among them"""

    class M(Net):
        def forward(self, *views: Any) -> Tensor:
            x, (y, z) = views
            return self.net(torch.cat([x, y * z], 1))

    return Case(M(net=mlp(8, 8, 3)), (randn(3, 4), (randn(3, 4), randn(3, 4))))


@case("objects")
def named_like_our_own() -> Case:
    """A forward whose argument is called `target`, as of models that compute their loss"""

    class M(Net):
        def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
            y = self.net(x)
            return y if target is None else F.cross_entropy(y, target)

    return Case(M(net=mlp(6, 8, 3)), (randn(3, 6),))


@case("objects")
def ordered_views() -> Case:
    """An OrderedDict of pictures in several sizes, each through the network of its name"""

    class M(Net):
        def forward(self, views: OrderedDict[str, Tensor]) -> Tensor:
            return self.head(torch.cat([self.nets[k](v).amax((2, 3)) for k, v in views.items()], 1))

    nets = nn.ModuleDict({"far": nn.Conv2d(1, 3, 3), "near": nn.Conv2d(1, 3, 2)})
    views = OrderedDict(far=randn(2, 1, 6, 6), near=randn(2, 1, 4, 4))
    return Case(M(nets=nets, head=nn.Linear(6, 2)), (views,))


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None
    loss: Tensor | None = None


@case("outputs")
def dataclass_answer() -> Case:
    """A dataclass with logits, hidden states and a loss that is None"""

    class M(Net):
        def forward(self, x: Tensor) -> Answer:
            h = F.relu(self.first(x))
            return Answer(self.head(h), (x, h))

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(3, 6),))


@case("outputs")
def none_among_outputs() -> Case:
    """A tuple with None and a plain number beside the logits, which come second"""

    class M(Net):
        def forward(self, x: Tensor) -> tuple[None, Tensor, int]:
            return None, self.net(x), 3

    return Case(M(net=mlp(6, 8, 3)), (randn(3, 6),))


@case("outputs")
def several_tasks() -> Case:
    """Two heads in a dict, the second named by `output=`"""

    class M(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = F.relu(self.trunk(x))
            return {name: head(h) for name, head in self.heads.items()}

    heads = nn.ModuleDict({"kind": nn.Linear(8, 3), "size": nn.Linear(8, 4)})
    model = M(trunk=nn.Linear(6, 8), heads=heads)
    return Case(model, (randn(3, 6),), target=2, convert={"output": "size"}, score=lambda out: out["size"][:, 2])


@case("outputs")
def siamese_distance() -> Case:
    """Siamese networks: two inputs through one network, the distance of both outputs asked for by a callable"""

    class M(Net):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(a), self.net(b)

    return Case(M(net=mlp(6, 8, 4)), (randn(3, 6), randn(3, 6)), target=lambda out: (out[0] - out[1]).norm(dim=1))


@case("outputs")
def triplet() -> Case:
    """A triplet's margin over three embeddings normed to length one"""

    class M(Net):
        def forward(self, a: Tensor, p: Tensor, n: Tensor) -> list[Tensor]:
            return [F.normalize(self.net(x), dim=1) for x in (a, p, n)]

    def margin(out: Any) -> Tensor:
        a, p, n = out
        return (a * p).sum(1) - (a * n).sum(1)

    return Case(M(net=mlp(6, 8, 4)), (randn(3, 6), randn(3, 6), randn(3, 6)), target=margin)


@case("outputs")
def picture_and_text() -> Case:
    """CLIP: each picture's similarity to each text of the call, a temperature learned in logarithms"""

    class M(Net):
        def forward(self, pictures: Tensor, texts: Tensor) -> Tensor:
            a = F.normalize(self.see(pictures.flatten(1)), dim=-1)
            b = F.normalize(self.read(texts).mean(1), dim=-1)
            return self.temperature.exp() * a @ b.t()

    model = M(see=mlp(12, 8, 6), read=nn.Embedding(20, 6), temperature=param(1))
    return Case(model, (randn(2, 3, 2, 2), ids(20, 4, 5)), axis={"0": 0, "1": None})


@case("outputs")
def deep_supervision() -> Case:
    """Hidden states of every layer in a list beside the last logits, a sum of them asked for"""

    class M(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            hidden = []
            for layer in self.layers:
                x = torch.tanh(layer(x))
                hidden.append(x)
            return self.head(x), hidden

    model = M(layers=nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]), head=nn.Linear(6, 3))
    return Case(model, (randn(3, 6),), target=lambda out: out[0][:, 1] + out[1][0].mean(1))


@case("outputs")
def actor_and_critic() -> Case:
    """A policy's distribution object and a value, the dueling form of a critic"""

    class M(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = F.relu(self.trunk(x))
            a = self.advantage(h)
            return self.value(h) + a - a.mean(1, keepdim=True), self.value(h)

    parts = {"trunk": nn.Linear(6, 8), "advantage": nn.Linear(8, 4), "value": nn.Linear(8, 1)}
    return Case(M(**parts), (randn(3, 6),))


@case("outputs")
def a_distribution() -> Case:
    """A torch.distributions object as the answer, its log-probability asked for by a callable"""

    class M(Net):
        def forward(self, x: Tensor) -> Any:
            return torch.distributions.Categorical(logits=self.net(x))

    return Case(M(net=mlp(6, 8, 4)), (randn(3, 6),), target=lambda out: out.logits[:, 2])


@case("scores")
def regression() -> Case:
    """A number [B, 1], put back on its scale"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * 12.5 - 40

    return Case(M(net=mlp(6, 8, 1)), (randn(3, 6),), derivable=False)  # the scale is seen through


@case("scores")
def squeezed() -> Case:
    """A probability [B] after .squeeze() and a sigmoid"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.net(x)).squeeze()

    return Case(M(net=mlp(6, 8, 1)), (randn(3, 6),), derivable=False)  # so is the sigmoid


@case("scores")
def single_number() -> Case:
    """A number for the whole call, a loss"""

    class M(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.net(x), y)

    return Case(M(net=mlp(6, 8, 2)), (randn(3, 6), randn(3, 2)), axis=None)


@case("scores")
def quantile_heads() -> Case:
    """Quantiles that can't cross: the first and sums of positive steps"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            q = self.net(x)
            return torch.cat([q[:, :1], q[:, :1] + F.softplus(q[:, 1:]).cumsum(1)], 1)

    return Case(M(net=mlp(6, 8, 3)), (randn(3, 6),), target=1)


@case("scores")
def ordinal_regression() -> Case:
    """Probabilities of ordered classes as differences of sigmoids at sorted thresholds"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            p = torch.sigmoid(self.cuts.cumsum(0) - self.net(x))
            return torch.diff(p, dim=1, prepend=torch.zeros_like(p[:, :1]), append=torch.ones_like(p[:, :1]))

    return Case(M(net=mlp(6, 8, 1), cuts=torch.tensor([-1.0, 1, 1])), (randn(3, 6),), target=1, derivable=False)


@case("scores")
def many_labels() -> Case:
    """Several labels at once by sigmoids, a weighting of them as the target"""
    weights = torch.tensor([1.0, 0, -1, 0.5], dtype=torch.float64)
    return Case(nn.Sequential(*mlp(6, 8, 4), nn.Tanh()), (randn(3, 6),), target=weights.expand(3, 4))


@case("scores")
def prototypes() -> Case:
    """Distances to class prototypes, the nearest the answer"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return -torch.cdist(self.net(x), self.prototypes).pow(2)

    return Case(M(net=mlp(6, 8, 4), prototypes=param(3, 4)), (randn(3, 6),), target=1)


@case("scores")
def angular_margin() -> Case:
    """Cosines between normed features and normed weights, times a scale, a margin by the angle"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            cos = F.linear(F.normalize(self.net(x)), F.normalize(self.w)).clamp(-0.999, 0.999)
            return 16 * torch.cos(torch.acos(cos) + 0.1)

    return Case(M(net=mlp(6, 8, 4), w=param(3, 4)), (randn(3, 6),))


@case("scores")
def survival() -> Case:
    """Hazards of every interval, the probability to survive as a cumulative product"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumprod(1 - self.net(x).sigmoid(), 1)

    return Case(M(net=mlp(6, 8, 4)), (randn(3, 6),), target=3)


@case("scores")
def forecast() -> Case:
    """A forecast [B, H, F] of a normed series, one hour of it asked for"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True, unbiased=False) + 1e-5
            trend = F.avg_pool1d(((x - mean) / std).mT, 3, 1, 1).mT
            return self.net(trend.mT).mT * std + mean

    return Case(M(net=nn.Linear(8, 4)), (randn(2, 8, 3),), target=lambda y: y[:, 2, 1])


@case("axes")
def one_picture_without_a_batch() -> Case:
    """A picture [C, H, W], to which the model gives a batch axis"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x[None])

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return Case(M(net=net), (randn(3, 6, 6),), axis=None)


@case("axes")
def classes_alone() -> Case:
    """A vector [F] in and classes [K] out"""
    return Case(mlp(6, 8, 3), (randn(6),), axis=None, target=1, score=lambda y: y[1])


@case("axes")
def mask_for_all() -> Case:
    """A mask, a bias and a temperature that all samples share"""

    class M(Net):
        def forward(self, x: Tensor, mask: Tensor, temperature: Tensor) -> Tensor:
            scores = self.q(x) @ self.k(x).mT / temperature + mask
            return self.head((scores.softmax(-1) @ x).mean(1))

    mask = torch.triu(torch.full((4, 4), float("-inf")), 1)
    model = M(q=nn.Linear(6, 6), k=nn.Linear(6, 6), head=nn.Linear(6, 3))
    return Case(model, (randn(2, 4, 6), mask, torch.tensor(2.0)), axis={"0": 0}, derivable=False, quiet=("1", "2"))


@case("axes")
def batch_in_the_middle() -> Case:
    """Axes [C, B, T], the samples on the second, named by `batch=1`"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(x.transpose(0, 1))).mean(2))

    model = M(conv=nn.Conv1d(3, 4, 3), head=nn.Linear(4, 3))
    return Case(model, (randn(3, 2, 7),), axis=1, convert={"batch": 1})


@case("axes")
def support_and_queries() -> Case:
    """Few-shot: queries classified by the mean of each class's examples, which all share"""

    class M(Net):
        def forward(self, queries: Tensor, support: Tensor, labels: Tensor) -> Tensor:
            h = self.net(support)
            which = F.one_hot(labels, 2).to(h.dtype)
            means = which.T @ h / which.sum(0).unsqueeze(1)
            return -(self.net(queries).unsqueeze(1) - means).pow(2).sum(2)

    args = (randn(3, 5), randn(4, 5), torch.tensor([0, 1, 0, 1]))
    return Case(M(net=mlp(5, 8, 4)), args, axis={"0": 0}, target=1)


@case("axes")
def normed_over_the_batch() -> Case:
    """Features centred by the mean of the batch, so that rows depend on each other"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.first(x))
            return self.head(h - h.mean(0))

    model = M(first=nn.Linear(6, 8), head=nn.Linear(8, 3))
    return Case(model, (randn(3, 6),), axis=None, target=1)


@case("axes")
def lengths_equal_the_batch() -> Case:
    """Three axes of the same length: batch, sequence and features"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.mix(x @ x.mT / 2 + x)).mean(1))

    return Case(M(mix=nn.Linear(4, 4), head=nn.Linear(4, 4)), (randn(4, 4, 4),))


@case("axes")
def batch_of_one() -> Case:
    """One sample, whose axis the model squeezes away and puts back"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.first(x.squeeze(0))).max(0).values).unsqueeze(0)

    return Case(M(first=nn.Linear(6, 8), head=nn.Linear(8, 3)), (randn(1, 4, 6),))


@case("axes")
def crops_of_a_picture() -> Case:
    """Ten crops folded into the batch, their logits averaged"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            b, n = x.shape[:2]
            return self.net(x.view(-1, *x.shape[2:])).view(b, n, -1).mean(1)

    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))
    return Case(M(net=net), (randn(2, 4, 1, 5, 5),))


@case("axes")
def no_bias_and_two_inputs() -> Case:
    """Two inputs and no bias anywhere, so that relevance of both sums up to the score"""

    class M(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = F.relu(self.one(x)) + F.relu(self.two(y))
            return self.head(torch.cat([h, h.roll(1, 1)], 1))

    one, two = nn.Linear(6, 8, bias=False), nn.Linear(5, 8, bias=False)
    return Case(M(one=one, two=two, head=nn.Linear(16, 3, bias=False)), (randn(3, 6), randn(3, 5)), conserves=True)
