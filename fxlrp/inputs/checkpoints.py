"""Find the weights in a checkpoint, whatever trainer wrote it, and the names that a network has for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.inputs.limits import read_json

HOLDERS = ("state_dict", "model", "model_state_dict", "module", "net", "network", "weights", "student")
"""Where trainers keep a model's weights, the likelier first."""
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema", "teacher")
"""Where they keep a moving average of these."""
INDEX = ".safetensors.index.json"


def find_weights(content: Any, source: str, key: str | None = None) -> tuple[Any, list[str]]:
    """Return the module or state dict in what a file holds, and notes on what was chosen.

    key: the name under which to look, where there are several.

    Raises FxlrpError, naming `source`, for a key that is not there, and content that holds no weights.
    """
    if isinstance(content, nn.Module) or not isinstance(content, Mapping):
        if isinstance(content, nn.Module) and key is None:
            return content, []
        raise FxlrpError(f"{source} holds a {type(content).__name__}, neither a module nor a state dict.")
    inside = {name: _weights(value) for name, value in content.items() if isinstance(name, str)}
    held = {name: weights for name, weights in inside.items() if weights is not None}
    if key is not None:
        if key not in held:
            raise FxlrpError(f"{source} has no weights under {key!r}; it has {', '.join(held) or 'none'}.")
        return held[key], []
    if not held:
        if (weights := _tensors(content)) is None:
            raise FxlrpError(f"{source} holds a dict, neither a module nor a state dict.")
        return weights, []
    usual = [name for name in (*HOLDERS, *AVERAGES) if name in held]
    if not usual and len(held) > 1:
        raise FxlrpError(f"{source} has weights under {', '.join(held)}; say which ones with --weights.")
    chosen = (usual or list(held))[0]
    notes = [] if chosen in HOLDERS else [f"the weights are those under {chosen!r}"]
    if averages := [name for name in held if name in AVERAGES and name != chosen]:
        notes.append(f"the file also holds {', '.join(averages)}: --weights {averages[0]} explains these")
    return held[chosen], notes


def _weights(value: Any) -> Any:
    """Return a module or state dict, or the one in a dict around it; None if there is none."""
    if isinstance(value, nn.Module):
        return value
    if not isinstance(value, Mapping):
        return None
    inner = next((value[k] for k in HOLDERS if isinstance(value.get(k), Mapping | nn.Module)), value)
    return inner if isinstance(inner, nn.Module) else _tensors(inner)


def _tensors(value: Mapping) -> dict[str, Tensor] | None:
    """Return the tensors of a dict, if their names and not, as an optimizer's, numbers lead to them."""
    tensors = {name: t for name, t in value.items() if isinstance(t, Tensor) and isinstance(name, str)}
    return tensors or None


def by_the_names_of(wanted: Set[str], weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights under a network's own names, as wrappers and trainers changed them, and notes on that.

    The prefix that most names have too much or too little is taken off or put on, if all of the network's names are
    then there; else the weights are returned as they are.  Weights beside the network's are left out.
    """
    plain = {name.replace("_orig_mod.", ""): t for name, t in weights.items()}
    for given in (dict(weights), plain):
        if wanted <= given.keys():
            return given, []
        for prefix in _prefixes(wanted, given.keys()):
            inside = {name.removeprefix(prefix): t for name, t in given.items() if name.startswith(prefix)}
            if wanted <= inside.keys():
                left_out = len(given) - len(inside)
                notes = [f"{left_out} weights that are not under {prefix!r} are left out"] if left_out else []
                return inside, notes
        for prefix in _prefixes(given.keys(), wanted):
            inside = {prefix + name: t for name, t in given.items()}
            if wanted <= inside.keys():
                return inside, []
    return dict(weights), []


def _prefixes(short: Set[str], long: Set[str], most: int = 3) -> list[str]:
    """Return what many of the long names have before a short one, the commonest first."""
    ends: dict[str, list[str]] = {}
    for name in long:
        ends.setdefault(name.rpartition(".")[2], []).append(name)
    count = Counter(
        name[: -len(end)]
        for end in sorted(short)[:50]
        for name in ends.get(end.rpartition(".")[2], ())
        if name.endswith(f".{end}")
    )
    return [prefix for prefix, _ in count.most_common(most)]


def shards_of(path: Path) -> list[Path]:
    """Return the files of a set of .safetensors, from its index or one of them; the file itself if it is whole.

    Raises FxlrpError for an index that names files elsewhere or that are not there.
    """
    index = path if path.name.endswith(INDEX) else next(iter(sorted(path.parent.glob(f"*{INDEX}"))), None)
    if index is None:
        return [path]
    content = read_json(index)
    named = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named.values()):
        raise FxlrpError(f"{index} is no index of .safetensors: it has no weight_map from names to files.")
    names = sorted(set(named.values()))
    if path != index and path.name not in names:
        return [path]
    if any(Path(name).name != name for name in names):
        raise FxlrpError(f"{index} names files outside of its folder; they are not read.")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise FxlrpError(f"{index} names {missing[0]}, which is not beside it; fetch all {len(names)} files.")
    return [index.parent / name for name in names]
