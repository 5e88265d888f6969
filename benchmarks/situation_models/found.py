"""Kinds that were found beside the table: each was refused, or explained wrong, when it was first tried."""

from __future__ import annotations

import torch
from torch import Tensor, distributions, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from benchmarks.situation_models import Case, Net, case, mlp, param, randn


@case("steps")
def residual_codes() -> Case:
    """Two codes, of a vector and of what the first leaves, whose sum is passed straight through"""

    class M(Net):
        def nearest(self, x: Tensor, codes: Tensor) -> Tensor:
            return codes[torch.cdist(x, codes).argmin(1)]

        def forward(self, x: Tensor) -> Tensor:
            z = self.encode(x)
            first = self.nearest(z, self.coarse)
            code = first + self.nearest(z - first, self.fine)
            return self.decode(z + (code - z).detach())

    return Case(
        M(encode=mlp(6, 8, 4), coarse=torch.randn(5, 4), fine=torch.randn(5, 4) / 2, decode=mlp(4, 8, 3)),
        (randn(3, 6),),
    )


@case("vision")
def one_picture_without_an_axis() -> Case:
    """A picture [C, H, W] through convolutions that take it as it is"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.max_pool2d(self.up(F.relu(self.conv(x))), 2).flatten())

    model = M(conv=nn.Conv2d(3, 4, 3), up=nn.ConvTranspose2d(4, 2, 2, stride=2), head=nn.Linear(32, 3))
    return Case(model, (randn(3, 6, 6),), axis=None, target=1, score=lambda y: y[1])


@case("spectral")
def correlation_of_spectra() -> Case:
    """The correlation of two series by their spectra, one conjugated"""

    class M(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.net(torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(y).conj(), n=8))

    return Case(M(net=mlp(8, 8, 3)), (randn(2, 8), randn(2, 8)))


@case("spectral")
def power_of_a_complex_type() -> Case:
    """Intensities y · conj(y), whose type is complex"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.fft.fft(x) @ torch.view_as_complex(self.lens)
            return y * y.conj()

    model = M(lens=param(6, 3, 2))
    return Case(model, (randn(2, 6),), target=1, score=lambda y: y[:, 1].real)


@case("random")
def likelihood_by_a_distribution() -> Case:
    """A log-likelihood by a normal distribution, whose parameters torch checks"""

    class M(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            mean, scale = self.net(x).chunk(2, 1)
            return distributions.Normal(mean, scale.exp()).log_prob(y).sum(1)

    return Case(M(net=mlp(6, 8, 4)), (randn(3, 6), randn(3, 2)))


@case("state")
def queue_of_keys() -> Case:
    """A queue of keys that is written where a counter among the buffers says"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            query, keys = F.normalize(self.net(x), dim=1), self.queue.clone()
            at = int(self.at)
            self.queue[:, at : at + len(x)] = query.detach().mT
            self.at[0] = (at + len(x)) % 8
            return query @ keys

    model = M(net=mlp(6, 8, 4), queue=torch.randn(4, 8), at=torch.zeros(1, dtype=torch.long))
    return Case(model, (randn(1, 6),), derivable=False)


@case("packed")
def likelihood_of_a_text_by_ctc() -> Case:
    """How likely frames are those of a text of some length, by CTC"""

    class M(Net):
        def forward(self, x: Tensor, texts: Tensor, lengths: Tensor) -> Tensor:
            scores, whole = self.net(x).log_softmax(-1).transpose(0, 1), torch.full_like(lengths, x.shape[1])
            return -F.ctc_loss(scores, texts, whole, lengths, reduction="none")

    texts, lengths = torch.tensor([[1, 2, 3], [2, 2, 4]]), torch.tensor([3, 2])
    return Case(M(net=mlp(4, 8, 5)), (randn(2, 7, 4), texts, lengths))


@case("packed")
def jagged_rows() -> Case:
    """Rows of different lengths in one nested tensor"""

    class M(Net):
        def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
            return self.head(torch.nested.nested_tensor_from_jagged(self.net(x), offsets).sum(1))

    return Case(M(net=mlp(4, 8, 5), head=nn.Linear(5, 3)), (randn(8, 4), torch.tensor([0, 5, 8])), axis=None)


@case("graphs")
def energies_of_molecules() -> Case:
    """One energy for each of several molecules that lie beside each other, by distances"""

    class M(Net):
        def forward(self, h: Tensor, at: Tensor, edges: Tensor, molecule: Tensor) -> Tensor:
            to, of = edges
            near = (at[to] - at[of]).square().sum(-1, keepdim=True)
            messages = self.message(torch.cat([h[to], h[of], near], -1))
            atoms = self.atom(torch.cat([h, h.new_zeros(len(h), 6).index_add(0, to, messages)], -1))
            return h.new_zeros(int(molecule.max()) + 1).index_add(0, molecule, atoms[:, 0])

    edges = torch.tensor([[0, 1, 2, 3, 4, 1], [1, 2, 0, 4, 3, 0]])
    args = (randn(5, 4), randn(5, 3), edges, torch.tensor([0, 0, 0, 1, 1]))
    model = M(message=mlp(9, 8, 6), atom=mlp(10, 8, 1))
    return Case(model, args, axis=None, score=lambda y: y.sum())


@case("physics")
def lagrangian() -> Case:
    """Accelerations by the Hessian of a learned Lagrangian, solved for each sample"""

    class M(Net):
        def energy(self, q: Tensor, v: Tensor) -> Tensor:
            return self.net(torch.cat([q, v])).sum() + v.square().sum()

        def one(self, q: Tensor, v: Tensor) -> Tensor:
            mass = torch.func.hessian(self.energy, 1)(q, v)
            mixed = torch.func.jacrev(torch.func.grad(self.energy, 1), 0)(q, v)
            return torch.linalg.solve(mass, torch.func.grad(self.energy)(q, v) - mixed @ v)

        def forward(self, q: Tensor, v: Tensor) -> Tensor:
            return torch.vmap(self.one)(q, v)

    return Case(M(net=mlp(4, 8, 1, act=nn.Tanh)), (randn(2, 2), randn(2, 2)))


@case("scores")
def cross_entropy_as_the_score() -> Case:
    """The loss of each sample, as a model wrapped for training returns it"""

    class M(Net):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x), labels, reduction="none")

    return Case(M(net=mlp(6, 8, 3)), (randn(3, 6), torch.tensor([0, 2, 1])))


@case("graphs")
def degrees_in_place() -> Case:
    """A graph convolution whose degrees are normed in place, as PyTorch Geometric's, with a node that has no edge"""

    class M(Net):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            src, dst = edges
            degree = x.new_zeros(len(x)).scatter_add_(0, dst, x.new_ones(dst.shape[0])).pow_(-0.5)
            degree.masked_fill_(degree == float("inf"), 0)
            h = self.layer(x)
            messages = h[src] * (degree[src] * degree[dst])[:, None]
            return self.head(F.relu(torch.zeros_like(h).index_add_(0, dst, messages)).mean(0, keepdim=True))

    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    return Case(M(layer=nn.Linear(4, 6), head=nn.Linear(6, 3)), (randn(5, 4), edges), axis=None)


@case("state")
def points_in_cells() -> Case:
    """Features of points added up in the cells of a grid by index_put_, before convolutions"""

    class M(Net):
        def forward(self, points: Tensor) -> Tensor:
            cells = (points[..., :2].sigmoid() * 4).long().clamp(max=3)
            rows = torch.arange(len(points), device=points.device)[:, None]
            grid = points.new_zeros(len(points), 4, 4, 5)
            grid.index_put_((rows, cells[..., 0], cells[..., 1]), self.embed(points), accumulate=True)
            return self.head(F.relu(self.conv(grid.permute(0, 3, 1, 2))).flatten(1))

    model = M(embed=nn.Linear(3, 5), conv=nn.Conv2d(5, 4, 3, padding=1), head=nn.Linear(64, 3))
    return Case(model, (randn(2, 7, 3),))


@case("packed")
def packed_with_first_states() -> Case:
    """Packed sequences of any order, and the state that each begins with"""

    class M(Net):
        def forward(self, packed: PackedSequence, state: Tensor) -> Tensor:
            return self.head(self.gru(packed, state)[1][-1])

    packed = pack_sequence([randn(2, 4), randn(4, 4), randn(3, 4)], enforce_sorted=False)
    return Case(
        M(gru=nn.GRU(4, 5), head=nn.Linear(5, 3)),
        (packed, randn(1, 3, 5)),
        axis=None,
        score=lambda y: y.gather(1, y.argmax(1, True)),
    )
