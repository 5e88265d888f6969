"""Concepts: for each part of a place, the samples of a data set in which it is most relevant, and most active.

Relevance maximization (RelMax): Achtibat et al., Nature Machine Intelligence 2023.  Of a channel that fires for many
things, its largest activations show one of them; its largest relevance shows what the network uses it for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from fxlrp.capture.objects import open_objects
from fxlrp.engine.seeds import Contrast, Question, Target
from fxlrp.errors import FxlrpError, counted
from fxlrp.inside.parts import parts_of_run
from fxlrp.inside.places import HEADS, place
from fxlrp.inside.references import call_of
from fxlrp.inside.runs import each_run
from fxlrp.methods import DEFAULT
from fxlrp.reports.report import Tabled
from fxlrp.rules.registry import Rulebook
from fxlrp.show.files import write

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer

FILE, FORMAT, EVERY = "concepts.safetensors", 1, 16
"""The file of what was found, its format, and after how many batches it is written."""
DIRECTIONS = "directions"


@dataclass(frozen=True, repr=False)
class Concepts(Tabled):
    """The parts of a place, and the samples that show what each stands for.

    relevance, activation: the samples [N, top] in which each of N parts has most of these, the first the most, −1 where
      there are fewer; values: their shares of relevance and their activations.
    mean: the mean share of each part [N].  count: how many samples were seen.
    directions: the rows d [N, C] and the columns e [N, C] that read them, if the parts are directions.
    """

    at: str
    by: str
    relevance: Tensor
    relevance_values: Tensor
    activation: Tensor
    activation_values: Tensor
    mean: Tensor
    count: int
    about: dict[str, Any] = field(default_factory=dict)
    directions: tuple[Tensor, Tensor] | None = None

    def condition(self, part: int) -> dict[str, Any]:
        """What lets relevance pass one part alone, as `given` takes it."""
        if self.directions is not None:
            return {self.at: {"direction": (self.directions[0][part], self.directions[1][part])}}
        return {self.at: {self.by: [part]}}

    def ranked(self, most: int | None = None) -> list[int]:
        """The parts by their mean share over the data, the largest first."""
        return self.mean.argsort(descending=True, stable=True)[:most].tolist()

    def samples(self, part: int, by: str = "relevance") -> list[int]:
        """The samples that show a part, by "relevance" or "activation"."""
        return [i for i in getattr(self, by)[part].tolist() if i >= 0]

    def table(self, most: int = 20) -> Table:
        """A rich table of the parts with the largest mean share."""
        out = Table(title=f"{self.at}: {self.by} over {counted(self.count, 'sample')}")
        for column in (self.by.removesuffix("s"), "mean share", "most relevant in", "most active in"):
            out.add_column(column, justify="right")
        for part in self.ranked(most):
            listed = (", ".join(map(str, self.samples(part, by)[:5])) for by in ("relevance", "activation"))
            out.add_row(str(part), f"{float(self.mean[part]):+.1%}", *listed)
        return out

    def __repr__(self) -> str:
        return f"<Concepts of {self.at}: {len(self.mean)} {self.by} over {counted(self.count, 'sample')}>"


def concepts(
    model: nn.Module | Explainer,
    data: Any,
    at: str,
    *,
    by: str = "channels",
    directions: Tensor | tuple[Tensor, Tensor] | None = None,
    target: Target | str = None,
    contrast: Contrast = "default",
    rules: str | Rulebook = DEFAULT,
    top: int = 8,
    batch_size: int = 16,
    out: str | Path | None = None,
    progress: bool = True,
) -> Concepts:
    """The samples in which each part of a place is most relevant, and most active, by one pass over the data.

    model: a module, or an explainer of one, which keeps its rules.
    data: a sequence (with a length, and samples by number): tensors without the axis of samples; dicts of such, which
      the model takes by name; or pairs (tensor, class), whose class is explained where target is "label".
    at: a module or node.  by: its "channels" or, of an attention, its "heads"; or
    directions: a matrix [K, C] whose rows are directions over the channels, such as factors or a dictionary's, and
      perhaps the matrix [C, K] that reads them (without it, the pseudo-inverse).
    target, contrast: as in a call of an explainer; without a target, each sample's top class.
    top: how many samples are kept for each part.
    out: a folder that what was found is written to, again and again: a rerun goes on where the last one ended.

    Raises FxlrpError for data without samples, for what `out` holds of other data or another model, and as an
    explainer's call does.
    """
    from fxlrp.explainer import Explainer, convert

    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or not len(data):
        raise FxlrpError("The data has no samples: give a sequence of them, such as a list or a data set.")
    if by not in ("channels", HEADS):
        raise FxlrpError(f"by={by!r} is neither channels nor heads.")
    explainer = model if isinstance(model, Explainer) else convert(model, rules=rules)
    pair = None if directions is None else _pair(directions)
    by = by if pair is None else DIRECTIONS
    about = {
        "at": at, "by": by, "rules": explainer.rulebook.name, "top": top, "contrast": str(contrast),
        "target": target if isinstance(target, int | str | None) else "given",
        "of": _fingerprint(explainer.model, data, pair),
    }  # fmt: skip
    so_far = None if out is None else load_concepts(out, about)
    so_far = None if so_far is None else replace(so_far, directions=pair)
    starts = range(0 if so_far is None else so_far.count, len(data), batch_size)
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    shown = track(starts, "concepts", console=console, transient=True, disable=hidden)
    for k, start in enumerate(shown):
        for args, kwargs, asked, first in _batches(data, range(start, min(start + batch_size, len(data))), target):
            share, activation = parts_of_call(explainer, args, kwargs, Question(asked, contrast), at, by, pair)
            so_far = _with(so_far, share, activation, first, about, pair)
        if out is not None and so_far is not None and ((k + 1) % EVERY == 0 or start == starts[-1]):
            save_concepts(so_far, out)
    assert so_far is not None
    return so_far


def _pair(directions: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The rows [K, C] of directions, and as many that read them.  Raises FxlrpError for other shapes."""
    rows, columns = directions if isinstance(directions, tuple | list) else (directions, None)
    rows = torch.as_tensor(rows)
    if rows.ndim != 2 or (columns is not None and tuple(columns.shape) != tuple(rows.T.shape)):
        raise FxlrpError(
            "directions is a matrix [K, C], a direction in each row, and perhaps one [C, K] that reads them."
        )
    return rows, torch.linalg.pinv(rows.double()).T.to(rows) if columns is None else torch.as_tensor(columns).T


def _batches(data: Any, which: range, target: Any) -> Iterator[tuple[tuple, dict[str, Any], Any, int]]:
    """Samples as calls: together if they are tensors of one shape, else one by one; with what is asked, and the number
    of the first."""
    items = [data[i] for i in which]
    labels: list[Any] = []
    if isinstance(items[0], tuple | list):
        labels, items = [item[1] for item in items], [item[0] for item in items]
    if isinstance(target, str) and target != "label":
        raise FxlrpError(f'target={target!r} is a name; give the class as a number, or "label" for that of the data.')
    if target == "label" and not labels:
        raise FxlrpError('target="label" takes the class from the data: give pairs (tensor, class).')
    asked: Any = torch.as_tensor(labels) if target == "label" else target
    of_one_shape = not isinstance(items[0], Mapping) and len({tuple(torch.as_tensor(x).shape) for x in items}) == 1
    groups = [items] if of_one_shape else [[item] for item in items]
    at = 0
    for group in groups:
        of_group = asked[at : at + len(group)] if target == "label" else asked
        if isinstance(group[0], Mapping):
            call: Any = call_of(group[0])
        else:
            call = ((torch.stack([torch.as_tensor(x) for x in group]),), {})
        yield *open_objects(call), of_group, which[at]
        at += len(group)


def parts_of_call(
    explainer: Explainer, args: tuple, kwargs: dict[str, Any], question: Question, at: str, by: str, pair: Any
) -> tuple[Tensor, Tensor]:
    """The share of relevance and the largest activation of each part [B, N]."""
    of_runs = []
    for run in each_run(explainer, args, kwargs, question, lambda plan: [place(plan, at, by == HEADS).node]):
        of_runs.append(parts_of_run(run, place(run.call.plan, at, by == HEADS), by, pair))
    relevance, activation = (torch.cat(several).cpu() for several in zip(*of_runs, strict=True))
    size = relevance.abs().sum(1, keepdim=True).clamp(min=torch.finfo(relevance.dtype).tiny)
    return relevance / size, activation


def _with(
    so_far: Concepts | None, share: Tensor, activation: Tensor, first: int, about: dict[str, Any], pair: Any
) -> Concepts:
    """What was found so far, with the samples from `first` on among it."""
    count, parts = share.shape
    top = about["top"]
    if so_far is None:
        none = torch.full((parts, top), -1), torch.full((parts, top), -torch.inf, dtype=share.dtype)
        zero = torch.zeros(parts, dtype=share.dtype)
        so_far = Concepts(about["at"], about["by"], *none, *none, mean=zero, count=0, about=about, directions=pair)
    samples = torch.arange(first, first + count).expand(parts, -1)

    def best(places: Tensor, values: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        every, where = torch.cat([values, new.T], 1), torch.cat([places, samples], 1)
        kept = every.sort(dim=1, descending=True, stable=True)
        return where.gather(1, kept.indices[:, :top]), kept.values[:, :top]

    relevance, relevance_values = best(so_far.relevance, so_far.relevance_values, share)
    active, activation_values = best(so_far.activation, so_far.activation_values, activation)
    total = so_far.count + count
    mean = (so_far.mean * so_far.count + share.sum(0)) / total
    return replace(
        so_far,
        relevance=relevance,
        relevance_values=relevance_values,
        activation=active,
        activation_values=activation_values,
        mean=mean,
        count=total,
    )


def _fingerprint(model: nn.Module, data: Any, pair: Any) -> str:
    """What tells a model and data from others: sums of weights, how many samples there are, the first and the last."""
    digest = hashlib.sha256(str(len(data)).encode())
    for name, p in model.named_parameters():
        digest.update(f"{name}{tuple(p.shape)}{float(p.detach().double().sum())!r}".encode())
    for item in (data[0], data[len(data) - 1], *(pair or ())):
        leaves = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else [item]
        for leaf in leaves:
            digest.update(torch.as_tensor(leaf).detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


TENSORS = ("relevance", "relevance_values", "activation", "activation_values", "mean")


def save_concepts(kept: Concepts, folder: str | Path) -> Path:
    """Write what was kept to a folder.  Raises FxlrpError if it can't be written."""
    from safetensors.torch import save as as_bytes

    about = {"format": FORMAT, "count": kept.count, **kept.about}
    tensors = {name: getattr(kept, name).contiguous() for name in TENSORS}
    return write(Path(folder) / FILE, as_bytes(tensors, {"fxlrp": json.dumps(about)}))


def load_concepts(folder: str | Path, about: Mapping[str, Any] | None = None) -> Concepts | None:
    """What a folder holds of an earlier pass; None if there is none.

    Raises FxlrpError for a file that is none, and where it is not about the same as `about`.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            written = json.loads((file.metadata() or {}).get("fxlrp", "{}"))
            tensors = {name: file.get_tensor(name) for name in TENSORS}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise FxlrpError(f"{path} can't be read: {error}; give another folder, or delete it.") from error
    count = written.pop("count", 0)
    if written.pop("format", None) != FORMAT or (about is not None and written != dict(about)):
        other = sorted(k for k in written if about is not None and written[k] != about.get(k))
        raise FxlrpError(
            f"{path} is of another pass ({', '.join('the model or data' if k == 'of' else k for k in other)} differ): "
            "give another folder, or delete it."
        )
    return Concepts(written["at"], written["by"], count=count, about=written, **tensors)
