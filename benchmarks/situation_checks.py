"""One model called as its users call it: does each rulebook explain it right, and leave it as it was?"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxlrp
from benchmarks.situation_models import CASES, Case
from fxlrp.capture.axes import argument
from fxlrp.capture.objects import open_objects

Record = dict[str, Any]
RESULTS = ("right", "refused", "wrong", "broken")  # from best to worst
BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")
EXACT, CONSERVED = 1e-8, 1e-4  # largest differences that pass, over the largest value; all is in float64
NOISE = 1e-6  # relevance this small a part of the score is taken for this large


def blank(name: str) -> Record:
    """The record of a case that nothing is known of."""
    return {"case": name, "kind": CASES[name].kind, "what": CASES[name].what, "seconds": 0.0, "books": {}}


def examine(name: str, books: Sequence[str] = BOOKS) -> Record:
    """The record of a case, asked by each of these rulebooks."""
    record, start = blank(name), time.perf_counter()
    for book in books:
        result, why = _ask(name, book)
        record["books"][book] = {"result": result, "why": why}
    return record | {"seconds": round(time.perf_counter() - start, 2)}


def verdict(record: Record) -> tuple[str, str]:
    """The worst result of a case, and why, with the rulebooks it is of if it is not that of all."""
    answers = record["books"].values()
    worst = max((a["result"] for a in answers), key=RESULTS.index)
    whys: dict[str, list[str]] = {}
    for book, a in record["books"].items():
        if a["result"] == worst and a["why"]:
            whys.setdefault(a["why"], []).append(book)
    said = [why if len(of) == len(answers) else f"{', '.join(of)}: {why}" for why, of in whys.items()]
    return worst, "; ".join(said)


def _ask(name: str, book: str) -> tuple[str, str]:
    case, again = build(name), build(name)
    before, given = _Scar(case.model), _copies((case.args, case.kwargs))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            explainer = fxlrp.convert(case.model, rules=book, **case.convert)
            a = explainer(*case.args, target=case.target, **_plain(book), **case.asked, **case.kwargs)
        warned = [str(w.message) for w in caught if issubclass(w.category, fxlrp.NoRelevance)]
        faults = _faults(case, again, book, explainer, a, bool(warned))
        result, why = ("wrong", "; ".join(faults)) if faults else ("right", "; ".join(warned))
    except fxlrp.FxlrpError as error:
        result, why = "refused", str(error)
    except Exception as error:
        result, why = "broken", f"{type(error).__name__}: {error}"
    scars = before.found(case.model)
    if not _same((case.args, case.kwargs), given):
        scars.append("an argument is changed")
    if not scars:
        return result, why
    return max("wrong", result, key=RESULTS.index), "; ".join(scars + [why] * (result != "right"))


def build(name: str) -> Case:
    """A case made anew with the same weights, in evaluation mode and double precision."""
    torch.manual_seed(0)
    case = CASES[name].make()
    if case.evaluate:
        case.model.eval()
    if case.double:
        case.model.double()
        case.args, case.kwargs = pytree.tree_map_only(Tensor, _doubled, open_objects((case.args, case.kwargs)))
        case.args, case.kwargs = _closed((case.args, case.kwargs))
    return case


def _faults(case: Case, again: Case, book: str, explainer: fxlrp.Explainer, a: Any, warned: bool) -> list[str]:
    """What is wrong with an attribution, in words with figures."""
    found = a.named
    expected = _own_output(again)
    faults = []
    if type(a.output) is not type(expected):
        faults.append(f"the output is a {type(a.output).__name__}, not a {type(expected).__name__}")
    if (off := _apart(_floats(a.output), _floats(expected))) > case.tolerance:
        faults.append(f"the output is {off:.1e} off")
    for name, r in found.items():
        x = dict(zip(found, a.inputs, strict=True))[name]
        if r.shape != x.shape:
            faults.append(f"relevance of {name} has shape {tuple(r.shape)}, not {tuple(x.shape)}")
        if not r.isfinite().all():
            faults.append(f"relevance of {name} is not finite")
        elif not r.any() and not warned and name not in case.quiet:
            faults.append(f"relevance of {name} is zero without a warning")
    if faults:
        return faults
    off = _rows_apart(case, book, explainer, a)
    faults += [f"rows alone are {off:.1e} off"] * (off > case.tolerance)
    if book == "epsilon" and case.conserves:
        whole, score = sum(float(r.sum()) for r in found.values()), float(_score(again, expected))
        faults += [f"the sum is {whole / score:.6f} of the score"] * (abs(whole / score - 1) > CONSERVED)
    if book == "gradient-input" and case.derivable:
        faults += _gradient_apart(again, found, explainer.report().left_out)
    return faults


def _plain(book: str) -> dict[str, None]:
    """Of the books that are held against the score itself, no contrast."""
    return {"contrast": None} if book in ("epsilon", "gradient-input") else {}


def _rows_apart(case: Case, book: str, explainer: fxlrp.Explainer, a: Any) -> float:
    """How far samples alone are from their rows of the batch, and what they share from the sum of theirs."""
    count = case.count()
    if count is None or count < 2:
        return 0.0
    shared: dict[str, Tensor] = {}
    least = NOISE * _largest(a.logits.detach())  # two sides that cancel leave nothing but rounding
    size = max([least, *(_largest(r) for r in a.named.values())]) or 1.0
    worst = 0.0
    for i in range(count):
        args, kwargs, axes = case.alone(i)
        target = a.target if case.target is None else case.target
        target = target[i : i + 1] if isinstance(target, Tensor) and target.ndim and len(target) == count else target
        asked = {k: v[i : i + 1] if isinstance(v, Tensor) else v for k, v in case.asked.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = explainer(*args, target=target, **_plain(book), **asked, **kwargs).named
        for name, r in alone.items():
            where, axis = axes(name)
            if axis is None:
                shared[name] = shared.get(name, 0) + r
                continue
            row = a.named[where] if axis == "whole" else a.named[where].narrow(axis, i, 1)
            part = tuple(slice(n) for n in r.shape)  # a sample alone may come without its padding
            worst = max(worst, _largest(row[part] - r) / size)
    return max([worst, *(_largest(a.named[name] - r) / size for name, r in shared.items())])


def _gradient_apart(case: Case, found: dict[str, Tensor], left_out: dict[str, str]) -> list[str]:
    """Where relevance is not the input times autograd's gradient of the same score."""
    tree = pytree.tree_map_only(Tensor, _leaf, open_objects((case.args, case.kwargs)))
    leaves = {
        argument(pytree.keystr(path)): t
        for path, t in pytree.tree_leaves_with_path(tree)
        if isinstance(t, Tensor) and t.requires_grad
    }
    if not leaves:
        return []
    case.args, case.kwargs = _closed(tree)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        score = _score(case, case.model(*case.args, **case.kwargs)).sum()
        grads = torch.autograd.grad(score, list(leaves.values()), allow_unused=True)
    wanted = {
        name: _product(t.detach(), g)
        for (name, t), g in zip(leaves.items(), grads, strict=True)
        if g is not None and bool(g.any())
    }
    size = max([_largest(w) for w in wanted.values()] or [0]) or 1.0
    faults = []
    for name, want in wanted.items():
        if name in found:
            off = _largest(found[name] - want) / size
            faults += [f"{name} is {off:.1e} off x · gradient"] * (off > case.tolerance)
        elif name not in left_out and want.any():
            faults.append(f"{name} has no relevance, but x · gradient up to {_largest(want):.1e}")
    return faults


def _product(x: Tensor, g: Tensor) -> Tensor:
    """x · g, of the real and the imaginary part apart."""
    return torch.complex(x.real * g.real, x.imag * g.imag) if x.is_complex() else x * g


def _score(case: Case, output: Any) -> Tensor:
    """The explained score, summed over the samples."""
    of = case.score or (case.target if callable(case.target) else None)
    if of is not None:
        return of(output).sum()
    y = _floats(output)[0]
    if y.ndim < 2 or (y.shape[1] == 1 and case.target is None):
        return y.sum()
    if isinstance(case.target, Tensor) and case.target.is_floating_point():
        return (y * case.target).sum()
    chosen = y.argmax(1) if case.target is None else torch.as_tensor(case.target).expand(len(y))
    return y.gather(1, chosen.view(-1, *[1] * (y.ndim - 1)).expand(-1, 1, *y.shape[2:])).sum()


def _own_output(case: Case) -> Any:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # as `convert` draws
        args, kwargs = _copies((case.args, case.kwargs))
        return case.model(*args, **kwargs)


class _Scar:
    """A model and the random numbers as they are now, and what is another one later."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self.tensors = {k: (id(v), v.detach().clone()) for k, v in _state(model)}
        self.flags = [(m.training, _hooks(m)) for m in modules]
        self.gradients = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        self.attributes = [{k: _value(v) for k, v in vars(m).items()} for m in modules]
        self.drawn = _drawn()

    def found(self, model: nn.Module) -> list[str]:
        now = _Scar(model)
        names = [k for k in {*self.tensors, *now.tensors} if k not in self.tensors or k not in now.tensors]
        names += [
            k
            for k, (i, v) in self.tensors.items()
            if k in now.tensors and not (now.tensors[k][0] == i and _same(now.tensors[k][1], v))
        ]
        changed = {
            "weights or buffers: " + ", ".join(sorted(names)[:3]): bool(names),
            "training mode or hooks": self.flags != now.flags,
            "requires_grad or grad": self.gradients != now.gradients,
            "attributes": self.attributes != now.attributes,
            "the random state": self.drawn != now.drawn,
        }
        return [f"{what} changed" for what, so in changed.items() if so]


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    held = [(f"{n}.{k}", v) for n, m in model.named_modules() for k, v in vars(m).items() if isinstance(v, Tensor)]
    return [*model.named_parameters(), *model.named_buffers(), *held]


def _hooks(module: nn.Module) -> list[int]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind, ())) for kind in kinds]


def _value(value: Any) -> Any:
    """What is compared of an attribute: its value if that is plain, else which object it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_value(v) for v in value]
    return {k: _value(v) for k, v in value.items()} if type(value) is dict else id(value)


def _drawn() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002


def _doubled(t: Tensor) -> Tensor:
    return t.to(torch.complex128) if t.is_complex() else t.double() if t.is_floating_point() else t


def _leaf(t: Tensor) -> Tensor:
    t = t.detach().clone()
    return t.requires_grad_() if t.is_floating_point() or t.is_complex() else t


def _closed(tree: Any) -> Any:
    from fxlrp.capture.objects import close_objects

    return close_objects(tree)


def _copies(tree: Any) -> Any:
    return _closed(pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), open_objects(tree)))


def _same(a: Any, b: Any) -> bool:
    pairs = zip(_tensors(a), _tensors(b), strict=True)
    return all(p.shape == q.shape and (p.is_meta or _apart([p], [q]) == 0) for p, q in pairs)


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(open_objects(tree)) if isinstance(t, Tensor)]


def _floats(tree: Any) -> list[Tensor]:
    return [t for t in _tensors(tree) if t.is_floating_point() or t.is_complex()]


def _largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def _apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """max |a - b| / max |b|, the worst of all tensors; infinities and NaN at the same places do not differ."""
    if [a.shape for a in found] != [b.shape for b in expected]:
        return float("inf")
    worst = 0.0
    plain: Callable[[Tensor], Tensor] = lambda t: t.dequantize() if t.is_quantized else t  # noqa: E731
    for a, b in zip(map(plain, found), map(plain, expected), strict=True):
        a, b = (t.to_dense() if t.layout is not torch.strided else t for t in (a, b))
        if a.dtype == torch.bool:
            a, b = a.int(), b.int()
        off = torch.where((a == b) | (a.isnan() & b.isnan()), 0, a - b).abs()
        if off.any():
            worst = max(worst, float(off.max() / b[b.isfinite()].abs().max().clamp(min=1e-300)))
    return worst
