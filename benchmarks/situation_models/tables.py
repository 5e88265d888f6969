"""Words, bags, categories, tables and graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.situation_models import Case, Net, case, ids, mlp, param, randn

EDGES = torch.tensor([[0, 1, 2, 3, 1, 4, 2], [1, 2, 3, 0, 4, 2, 0]])


@case("bags")
def embedding_bag_with_offsets() -> Case:
    """nn.EmbeddingBag over texts in one line, with offsets (torch's own text tutorial)"""

    class M(Net):
        def forward(self, text: Tensor, offsets: Tensor) -> Tensor:
            return self.head(self.bag(text, offsets))

    model = M(bag=nn.EmbeddingBag(30, 6), head=nn.Linear(6, 3))
    return Case(model, (ids(30, 9), torch.tensor([0, 4])), axis=None)


@case("bags")
def embedding_bag_by_rows() -> Case:
    """nn.EmbeddingBag over rows of ids, the maximum, beside the sum of weighted ids"""

    class M(Net):
        def forward(self, words: Tensor, weights: Tensor) -> Tensor:
            return self.head(torch.cat([self.top(words), self.bag(words, per_sample_weights=weights)], 1))

    model = M(top=nn.EmbeddingBag(30, 6, mode="max"), bag=nn.EmbeddingBag(30, 6, mode="sum"), head=nn.Linear(12, 3))
    return Case(model, (ids(30, 2, 5), torch.rand(2, 5)))


@case("bags")
def fast_text_ngrams() -> Case:
    """Words and pairs of words hashed into buckets, their vectors averaged without the padding"""

    class M(Net):
        def forward(self, words: Tensor) -> Tensor:
            pairs = (words[:, 1:] * 31 + words[:, :-1]) % 17 + 1
            h = torch.cat([self.words(words), self.pairs(pairs)], 1)
            keep = torch.cat([words != 0, words[:, 1:] != 0], 1).unsqueeze(-1).to(h.dtype)
            return self.head((h * keep).sum(1) / keep.sum(1))

    model = M(words=nn.Embedding(30, 6), pairs=nn.Embedding(18, 6), head=nn.Linear(6, 3))
    return Case(model, (torch.tensor([[4, 9, 2, 0], [5, 5, 29, 7]]),))


@case("bags")
def text_convolutions() -> Case:
    """Kim's convolutional text classifier: several widths, a maximum over time"""

    class M(Net):
        def forward(self, words: Tensor) -> Tensor:
            x = self.embed(words).transpose(1, 2)
            return self.head(torch.cat([conv(x).relu().max(2)[0] for conv in self.convs], 1))

    convs = nn.ModuleList([nn.Conv1d(6, 4, k) for k in (2, 3, 4)])
    return Case(M(embed=nn.Embedding(30, 6), convs=convs, head=nn.Linear(12, 3)), (ids(30, 2, 7),))


@case("bags")
def one_hot_characters() -> Case:
    """Characters as one-hot rows in floats, convolved"""

    class M(Net):
        def forward(self, text: Tensor) -> Tensor:
            x = F.one_hot(text, 12).to(self.conv.weight.dtype).transpose(1, 2)
            return self.head(F.relu(self.conv(x)).mean(2))

    return Case(M(conv=nn.Conv1d(12, 6, 3), head=nn.Linear(6, 3)), (ids(12, 2, 8),))


@case("bags")
def matrix_factorisation() -> Case:
    """Users and items: dot products of their vectors, with biases that are looked up, a score [B]"""

    class M(Net):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            dot = (self.users(user) * self.items(item)).sum(-1)
            return dot + self.user_bias(user).squeeze(-1) + self.item_bias(item).squeeze(-1)

    parts = {"users": nn.Embedding(9, 4), "items": nn.Embedding(9, 4)}
    return Case(M(user_bias=nn.Embedding(9, 1), item_bias=nn.Embedding(9, 1), **parts), (ids(9, 3), ids(9, 3)))


@case("bags")
def item_sequence_recommender() -> Case:
    """Candidates scored against a history of items by the table they share, ids from one matrix"""

    class M(Net):
        def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
            h = self.rnn(self.items(history))[1][-1]
            return (self.items(candidates) @ h.unsqueeze(-1)).squeeze(-1)

    model = M(items=nn.Embedding(30, 6, padding_idx=0), rnn=nn.GRU(6, 6, batch_first=True))
    return Case(model, (ids(30, 2, 5), ids(30, 2, 4)))


@case("tables")
def entity_embeddings() -> Case:
    """Numbers and categories, a table of vectors for each category, batch norm of the numbers"""

    class M(Net):
        def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
            parts = [table(categories[:, i]) for i, table in enumerate(self.tables)]
            return self.net(torch.cat([*parts, self.norm(numbers)], 1))

    tables = nn.ModuleList([nn.Embedding(n, 3) for n in (5, 7)])
    return Case(M(tables=tables, norm=nn.BatchNorm1d(4), net=mlp(10, 8, 2)), (randn(3, 4), ids(5, 3, 2)))


@case("tables")
def floats_with_category_columns() -> Case:
    """One matrix of floats whose first columns are categories"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            codes = x[:, :2].long() + torch.tensor([0, 5])
            return self.net(torch.cat([self.table(codes).flatten(1), x[:, 2:]], 1))

    x = torch.cat([ids(5, 3, 2).float(), randn(3, 4)], 1)
    return Case(M(table=nn.Embedding(10, 3), net=mlp(10, 8, 2)), (x,), derivable=False)


@case("tables")
def deep_and_cross() -> Case:
    """Cross layers (x₀ · w(x) + x) beside a deep network, read by one logit"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = x
            for layer in self.cross:
                h = x * layer(h) + h
            return self.head(torch.cat([h, self.deep(x)], 1))

    cross = nn.ModuleList([nn.Linear(5, 5) for _ in range(2)])
    return Case(M(cross=cross, deep=mlp(5, 8, 4), head=nn.Linear(9, 1)), (randn(3, 5),))


@case("tables")
def factorisation_machine() -> Case:
    """Pairwise interactions as half the difference of squares"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            pairs = (x @ self.v).pow(2) - x.pow(2) @ self.v.pow(2)
            return self.linear(x).squeeze(1) + 0.5 * pairs.sum(1)

    return Case(M(v=param(6, 3), linear=nn.Linear(6, 1)), (randn(3, 6),))


@case("tables")
def feature_tokenizer() -> Case:
    """FT-transformer: each number times a vector of its own, a class token, an encoder layer"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.unsqueeze(-1) * self.scale + self.shift
            tokens = torch.cat([self.cls.expand(len(x), 1, -1), tokens], 1)
            return self.head(self.layer(tokens)[:, 0])

    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
    model = M(scale=param(4, 8), shift=param(4, 8), cls=param(1, 1, 8), layer=layer, head=nn.Linear(8, 2))
    return Case(model, (randn(3, 4),))


@case("tables")
def soft_decision_tree() -> Case:
    """A soft tree: probabilities of leaves multiplied along its branches"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            right = self.nodes(x).sigmoid()
            both = torch.stack([1 - right, right], -1)
            first, second = both[:, 0], both[:, 1:3]
            return (first.unsqueeze(-1) * second).flatten(1) @ self.leaves

    return Case(M(nodes=nn.Linear(5, 3), leaves=param(4, 3)), (randn(3, 5),))


@case("tables")
def missing_values() -> Case:
    """Missing numbers filled by a learned value, and flags of what was missing beside them"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            missing = x.isnan()
            x = torch.where(missing, self.fill, x)
            return self.net(torch.cat([x, missing.to(x.dtype)], 1))

    x = randn(3, 5)
    x[0, 1] = x[2, 4] = float("nan")
    return Case(M(fill=param(5), net=mlp(10, 8, 2)), (x,), derivable=False)


@case("tables")
def sparse_attention_over_features() -> Case:
    """TabNet's step: a sparsemax mask over the features, by sorting and cumulative sums"""

    class M(Net):
        def sparsemax(self, z: Tensor) -> Tensor:
            s = z.sort(-1, descending=True).values
            k = torch.arange(1, z.shape[-1] + 1).to(z)
            size = (1 + k * s > s.cumsum(-1)).sum(-1, keepdim=True)
            tau = (s.cumsum(-1).gather(-1, size - 1) - 1) / size
            return (z - tau).clamp(min=0)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            mask = self.sparsemax(self.attend(x))
            a, gate = self.glu(mask * x).chunk(2, -1)
            return self.head(F.relu(a * gate.sigmoid()))

    parts = {"norm": nn.BatchNorm1d(6), "attend": nn.Linear(6, 6), "glu": nn.Linear(6, 16)}
    return Case(M(head=nn.Linear(8, 2), **parts), (randn(3, 6),))


@case("graphs")
def graph_convolution_by_scatter() -> Case:
    """A graph convolution by index_add, with degrees, read as the mean of all nodes"""

    class M(Net):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            src, dst = edges
            degree = torch.ones(len(x)).to(x).index_add(0, dst, torch.ones(dst.shape[0]).to(x)).rsqrt()
            for layer in self.layers:
                h = layer(x)
                messages = h[src] * (degree[src] * degree[dst]).unsqueeze(-1)
                x = F.relu(h * degree.pow(2).unsqueeze(-1) + torch.zeros_like(h).index_add(0, dst, messages))
            return self.head(x.mean(0, keepdim=True))

    layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6)])
    return Case(M(layers=layers, head=nn.Linear(6, 3)), (randn(5, 4), EDGES), axis=None)


@case("graphs")
def graph_attention_by_node() -> Case:
    """Graph attention with a softmax over a node's edges, a node's class asked for by `position`"""

    class M(Net):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            h, (src, dst) = self.mix(x), edges
            e = F.leaky_relu(self.a(torch.cat([h[src], h[dst]], 1))).squeeze(1)
            most = torch.full((len(x),), -1e9).to(e).scatter_reduce(0, dst, e, "amax")
            w = (e - most[dst]).exp()
            total = torch.zeros(len(x)).to(w).scatter_add(0, dst, w)
            return self.head(torch.zeros_like(h).index_add(0, dst, h[src] * (w / total[dst]).unsqueeze(1)))

    model = M(mix=nn.Linear(4, 6), a=nn.Linear(12, 1), head=nn.Linear(6, 3))
    return Case(model, (randn(5, 4), EDGES), axis=None, target=1, asked={"position": 2}, score=lambda y: y[2, 1])


@case("graphs")
def dense_adjacency() -> Case:
    """A batch of graphs as matrices, normed by their degrees, weighted edges explained too"""

    class M(Net):
        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            a = adjacency + torch.eye(x.shape[1])
            a = a / a.sum(-1, keepdim=True)
            return self.head(F.relu(a @ self.two(F.relu(a @ self.one(x)))).sum(1))

    model = M(one=nn.Linear(4, 6), two=nn.Linear(6, 6), head=nn.Linear(6, 3))
    return Case(model, (randn(2, 5, 4), torch.rand(2, 5, 5)))


@case("graphs")
def sparse_adjacency() -> Case:
    """A sparse COO matrix as the argument, torch.sparse.mm"""

    class M(Net):
        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            h = F.relu(torch.sparse.mm(adjacency, self.one(x)))
            return self.head(torch.sparse.mm(adjacency, h).mean(0, keepdim=True))

    a = torch.sparse_coo_tensor(EDGES, torch.rand(7), (5, 5)).coalesce()
    return Case(M(one=nn.Linear(4, 6), head=nn.Linear(6, 3)), (randn(5, 4), a), axis=None, derivable=False)


@case("graphs")
def several_graphs_in_one() -> Case:
    """Two graphs in one list of nodes, pooled by a vector that says which node is whose"""

    class M(Net):
        def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
            h = self.net(x)
            h = h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
            size = int(batch.max()) + 1
            total = h.new_zeros(size, h.shape[1]).index_add(0, batch, h)
            return self.head(total / torch.bincount(batch, minlength=size).unsqueeze(1))

    edges = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 0, 4, 3]])
    model = M(net=mlp(4, 8, 6), head=nn.Linear(6, 3))
    return Case(model, (randn(5, 4), edges, torch.tensor([0, 0, 0, 1, 1])), axis=None)


@case("graphs")
def message_passing_with_edge_features() -> Case:
    """Messages made from both ends and the edge's own features, a GRU cell as the update"""

    class M(Net):
        def forward(self, nodes: Tensor, edges: Tensor, features: Tensor) -> Tensor:
            h = self.embed(nodes)
            for _ in range(2):
                m = self.message(torch.cat([h[edges[0]], h[edges[1]], features], 1))
                into = edges[1].unsqueeze(1).expand_as(m)
                h = self.update(torch.zeros_like(h).scatter_add(0, into, m), h)
            return self.head(h.sum(0)).unsqueeze(0)

    parts = {"embed": nn.Embedding(9, 6), "message": mlp(14, 8, 6), "update": nn.GRUCell(6, 6)}
    return Case(M(head=nn.Linear(6, 2), **parts), (ids(9, 5), EDGES, randn(7, 2)), axis=None)


@case("graphs")
def point_cloud() -> Case:
    """PointNet with a learned transform of the points, a maximum over them"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            turn = self.turn(x).amax(1).view(-1, 3, 3) + torch.eye(3)
            return self.head(self.net(x @ turn).amax(1))

    return Case(M(turn=mlp(3, 8, 9), net=mlp(3, 8, 8), head=nn.Linear(8, 3)), (randn(2, 7, 3),))


@case("graphs")
def nearest_neighbours() -> Case:
    """Dynamic graph convolution: each point with its nearest, by cdist, topk and gather"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            near = torch.cdist(x, x).topk(3, largest=False).indices
            rows = torch.arange(len(x))[:, None, None]
            there = x[rows, near]
            here = x.unsqueeze(2).expand_as(there)
            return self.head(self.edge(torch.cat([here, there - here], -1)).amax(2).mean(1))

    return Case(M(edge=mlp(6, 8, 8), head=nn.Linear(8, 3)), (randn(2, 6, 3),))


@case("graphs")
def equivariant_distances() -> Case:
    """Molecules: kinds of atoms that are looked up, radial functions of distances, a cosine cutoff, an energy"""

    class M(Net):
        def forward(self, atoms: Tensor, places: Tensor) -> Tensor:
            h = self.atoms(atoms)
            apart = places[:, :, None] - places[:, None]
            off = 1 - torch.eye(apart.shape[1])
            r = (apart.pow(2).sum(-1) + 1e-9).sqrt()
            basis = torch.exp(-(r[..., None] - torch.linspace(0, 3, 5)).pow(2))
            cut = 0.5 * (torch.cos(r * 0.5) + 1) * (r < 6) * off
            h = h + ((self.filter(basis) * cut[..., None]) * h[:, None]).sum(2)
            return self.out(F.silu(h)).sum((1, 2))

    model = M(atoms=nn.Embedding(9, 6), filter=mlp(5, 6, act=nn.SiLU), out=mlp(6, 6, 1, act=nn.SiLU))
    return Case(model, (ids(9, 2, 4), randn(2, 4, 3)))
