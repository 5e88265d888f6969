"""Graphs whose answer is known, and a small network that learned it: `python examples/molecules.py` trains it.

A molecule is a tree of carbon with oxygen, nitrogen and fluorine on it, and a ring in half of them. Half have a nitro
group, an N with two O of its own; all have two N, six O and three F, and there are other groups that have a part of it.
"""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

ATOMS = ("C", "N", "O", "F")
CLASSES = ("no nitro group", "nitro group")
HERE = Path(__file__).parent
TEST = range(10_000_000, 10_001_000)  # seeds; training takes them from 0


class Molecule(NamedTuple):
    """A molecule: which atom each node is, which are joined, its class, and the nodes of its nitro group."""

    atoms: list[str]
    bonds: list[tuple[int, int]]
    label: int
    group: tuple[int, ...]

    @property
    def x(self) -> Tensor:
        """What a network sees of the atoms [N, 4]: which each is."""
        return F.one_hot(torch.tensor([ATOMS.index(a) for a in self.atoms]), len(ATOMS)).float()

    @property
    def edges(self) -> Tensor:
        """The bonds, in both directions [2, E]."""
        pairs = torch.tensor(self.bonds).T
        return torch.cat([pairs, pairs.flip(0)], 1)


def molecule(seed: int) -> Molecule:
    """The molecule of this seed."""
    g = random.Random(seed)
    carbons = g.randint(7, 10)
    atoms, bonds = ["C"] * carbons, [(g.randrange(max(0, i - 3), i), i) for i in range(1, carbons)]
    if g.random() < 0.5:  # a ring of six
        bonds = [*((i, i + 1) for i in range(5)), (5, 0), *(b for b in bonds if b[1] > 5)]

    def group(middle: str, ends: str) -> tuple[int, ...]:
        first = len(atoms)
        atoms.extend(middle + ends)
        bonds.append((g.randrange(carbons), first))
        bonds.extend((first, first + 1 + i) for i in range(len(ends)))
        return tuple(range(first, len(atoms)))

    label = g.randrange(2)
    parts = [("N", "O"), ("C", g.choice(("OO", "OF"))), ("N", "OO" if label else "OF")]
    groups = [group(middle, ends) for middle, ends in g.sample(parts, 3)]
    for atom, count in (("O", 6), ("F", 3)):
        for _ in range(count - atoms.count(atom)):
            group(atom, "")
    nitro = next((nodes for nodes in groups if "".join(atoms[n] for n in nodes) == "NOO"), ())
    return Molecule(atoms, bonds, label, nitro)


class Network(nn.Module):
    """Three rounds in which every atom hears the sum of its neighbours (Xu et al. 2019, 1810.00826), and a maximum."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [len(ATOMS), width, width, width]
        self.own = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.heard = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """The molecule's scores [1, classes]."""
        for own, heard in zip(self.own, self.heard, strict=True):
            x = (own(x) + heard(torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]))).relu()
        return self.head(x.amax(0, keepdim=True))


def train(steps: int = 2000, count: int = 5000) -> Network:
    """Train the network on molecules of the first seeds."""
    torch.manual_seed(0)
    model, order = Network(), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    data = [molecule(seed) for seed in range(count)]
    for step in range(steps):
        batch = order.sample(data, 8)
        scores = torch.cat([model(m.x, m.edges) for m in batch])
        loss = F.cross_entropy(scores, torch.tensor([m.label for m in batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 199:
            print(f"step {step + 1}/{steps} loss {loss.item():.3f}", flush=True)
    return model.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = train()
    save_file(model.state_dict(), HERE / "molecules.safetensors")
    with torch.no_grad():
        right = [int(model(m.x, m.edges).argmax()) == m.label for m in map(molecule, TEST)]
    print(f"{sum(right) / len(right):.1%} of {len(right)} fresh molecules right")
