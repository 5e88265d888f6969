"""Hostile and damaged files for every loader: real ones, changed at random where it hurts, each tried in a process of
its own, which is watched.

    python -m tests.inputs.fuzzing --minutes 60 --seed 1      # or make fuzz
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import functools
import io
import itertools
import json
import multiprocessing
import os
import pickle
import pickletools
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock  # noqa: F401 - it writes and removes a file when it is first imported
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from fxlrp import FxlrpError, convert
from fxlrp.inputs import Preprocess, load_labels, load_model, open_picture
from fxlrp.text.command import load_tokenizer

SECONDS, MEGABYTES = 5, 1024
"""What one file may take, beyond what the process takes anyway."""
PATIENCE = 30
"""Seconds of the processor after which it is ended, or four times as many of the clock."""


class Net(nn.Module):
    """A bit of everything that networks consist of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.pool, self.groups = nn.MaxPool2d(2), nn.GroupNorm(2, 4)
        self.register_buffer("shift", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.groups(torch.relu(self.norm(self.conv(x)))))
        x = nn.functional.pad(x, (1, 1, 0, 0)).flatten(2).transpose(1, 2) + self.shift
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1).abs().clamp(min=0.1).log())


class Text(nn.Module):
    """Rows of numbers through a recurrent layer and what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.norm, self.out = nn.LSTM(6, 4, batch_first=True), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.lstm(x)[0])
        index = x.argsort(1)[:, :2]
        x = torch.cat([x.gather(1, index), x[:, 1:3], nn.functional.interpolate(x.mT, 2).mT], 1)
        return self.out(torch.where(x > 0, x, 0.1 * x).cumsum(1).softmax(1).mean(1))


@dataclass(frozen=True)
class Kind:
    """A kind of file: how a real one is made in a folder, and what a user does with it."""

    make: Callable[[Path], Path]
    use: Callable[[Path], Any]


def _pt(make: Callable[[], Any], **how: Any) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        torch.save(make(), folder / "m.pt", **how)
        return folder / "m.pt"

    return made


def _net() -> nn.Module:
    """Of torch's own modules, as its class would not be found."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5)).eval()


def _state() -> dict[str, Any]:
    about = {"epoch": 3, "best": np.float64(0.5), "shape": torch.Size([3, 4]), "per": np.arange(3.0), "seen": {1, 2}}
    return {"state_dict": _net().state_dict(), "args": about, "lr": [0.1, (0.9, 0.999)], "device": torch.device("cpu")}


FACTORY = """from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5))
"""


def _weights(folder: Path) -> Path:
    save_file({k: t.contiguous() for k, t in _net().state_dict().items()}, folder / "m.safetensors")
    return folder / "m.safetensors"


def _exported(model: Callable[[], nn.Module], *shape: int) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        auto = torch.export.Dim.AUTO
        program = torch.export.export(model().eval(), (torch.rand(shape),), dynamic_shapes=({0: auto},))
        torch.export.save(program, folder / "m.pt2")
        return folder / "m.pt2"

    return made


class Patches(nn.Module):
    """Patches that attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.cut(x).flatten(2).transpose(1, 2))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(nn.functional.gelu(x).mean(1))


def _convolutions() -> nn.Module:
    first = (nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.SiLU())
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def _explainer(model: Callable[[], nn.Module], rules: str) -> Callable[[Path], Path]:
    return lambda folder: convert(model().eval(), torch.rand(2, 3, 16, 16), rules=rules).export(folder / "m.pt2")


def _folder(safe: bool) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        import transformers

        source = Path(__file__).parents[2] / "examples" / "text"
        out = shutil.copytree(source, folder / "model")
        if not safe:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(source)
            torch.save(model.state_dict(), out / "pytorch_model.bin")
            (out / "model.safetensors").unlink()
        return out

    return made


def _picture(suffix: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 255, (24, 17, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{suffix}")
        return folder / f"p{suffix}"

    return made


def _labels(folder: Path) -> Path:
    (folder / "labels.json").write_text(json.dumps({str(i): ["n0", f"name {i}"] for i in range(5)}))
    return folder / "labels.json"


def _run(path: Path, *shape: int, **how: Any) -> None:
    """Load a model and run it, or its explanation."""
    loaded = load_model(str(path), **how)
    x = loaded.like(torch.rand(shape))
    if path.suffix in (".pt", ".safetensors") and zlib.crc32(path.read_bytes()) % 4 == 0:
        convert(loaded.module)(x)
        return
    with torch.no_grad():
        loaded.module(x)


def _run_weights(path: Path) -> None:
    (path.parent / "arch.py").write_text(FACTORY)
    _run(path, 1, 3, 16, 16, arch=f"{path.parent / 'arch.py'}:make")


def _run_folder(path: Path) -> None:
    tokenizer = load_tokenizer(str(path))
    ids = tokenizer("it was not a bad film, was it?")["input_ids"][:16]
    model = load_model(str(path)).module
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))


def _look(path: Path) -> None:
    Preprocess((32, 32))(open_picture(path))


IMAGE, ROWS = (1, 3, 16, 16), (1, 5, 6)
KINDS = {
    "pt module": Kind(_pt(_net), lambda path: _run(path, *IMAGE)),
    "pt checkpoint": Kind(_pt(_state), _run_weights),
    "pt old": Kind(_pt(lambda: _net().state_dict(), _use_new_zipfile_serialization=False), _run_weights),
    "safetensors": Kind(_weights, _run_weights),
    "pt2 pictures": Kind(_exported(Net, 2, 3, 16, 16), lambda path: _run(path, *IMAGE)),
    "pt2 rows": Kind(_exported(Text, 2, 5, 6), lambda path: _run(path, *ROWS)),
    "pt2 explainer": Kind(_explainer(_convolutions, "abslrp"), lambda path: _run(path, *IMAGE)),
    "pt2 explainer of attention": Kind(_explainer(Patches, "attnlrp"), lambda path: _run(path, *IMAGE)),
    "folder": Kind(_folder(True), _run_folder),
    "folder with a pickle": Kind(_folder(False), _run_folder),
    **{s: Kind(_picture(s), _look) for s in (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif")},
    "labels": Kind(_labels, load_labels),
}

# ------------------------------------------------------------------------------------------------------ what is changed

HUGE = (0, 1, -1, 2, 7, 2**16, 2**31 - 1, 2**31, -(2**31), 10**9, 10**11, 2**63 - 1, -(2**63), 2**64, 10**30)
STRANGE = (
    None,
    True,
    False,
    0.5,
    1e300,
    float("nan"),
    "",
    "x",
    [],
    {},
    [[]],
    "../../etc/passwd",
    "\x1b[2J",
    "é",
    "\ud800",
)


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def change_json(value: Any, r: random.Random, marker: Path) -> Any:
    """One or two places of JSON replaced, dropped, doubled or nested."""
    value = copy.deepcopy(value)
    for _ in range(r.choice((1, 1, 2))):
        places: list[tuple[Any, Any]] = []

        def walk(thing: Any, places: list = places) -> None:
            for key, inner in thing.items() if isinstance(thing, dict) else enumerate(thing):
                places.append((thing, key))
                if isinstance(inner, dict | list):
                    walk(inner)

        if isinstance(value, dict | list):
            walk(value)
        if not places:
            return r.choice(STRANGE)
        inside, key = r.choice(places)
        old = inside[key]
        how = r.randrange(9)
        if how == 0 and isinstance(inside, dict):
            del inside[key]
        elif how == 1 and isinstance(inside, dict):
            inside[r.choice(("use_pickle", "auto_map", "x", "__class__", "target", "custom_obj_values"))] = r.choice(
                (1, True, {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, old)
            )
        elif how == 2 and isinstance(old, int) and not isinstance(old, bool):
            inside[key] = old + r.choice((-1, 1, 2, 1000))
        elif how in (2, 3):
            inside[key] = r.choice(HUGE)
        elif how == 4:
            inside[key] = r.choice(STRANGE)
        elif how == 5:
            inside[key] = r.choice(
                (
                    f"__import__('os').system('touch {marker}')",
                    f"exec({code(marker)!r})",
                    "torch.serialization.os.system",
                    "torch.ops.aten.from_file.default",
                    r"(a+)+$",
                    "Pow(Integer(10), Pow(Integer(10), Integer(10)))",
                )
            )
        elif how == 6:  # another value of the same file
            inside[key] = copy.deepcopy(r.choice([i[k] for i, k in places]))
        elif how == 7 and isinstance(inside, list):
            inside.insert(r.randrange(len(inside) + 1), copy.deepcopy(old))
        else:
            for _ in range(r.choice((2, 100, 300))):
                old = [old]
            inside[key] = old
    return value


class Evil:
    """Pickles as a call that leaves a mark."""

    def __init__(self, marker: Path, r: random.Random) -> None:
        calls: list[tuple] = [(exec, (code(marker),)), (os.system, (f"touch {marker}",)), (open, (str(marker), "w"))]
        self.call = r.choice(calls)

    def __reduce__(self) -> tuple:
        return self.call


def change_pickle(data: bytes, r: random.Random, marker: Path) -> bytes:
    """Pickles, one behind the other, of which one has a step changed, doubled, dropped or put in from elsewhere."""
    file, ends = io.BytesIO(data), [0]
    while len(ends) <= 5 and data[ends[-1] : ends[-1] + 1] == b"\x80":
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    begin, end = r.choice([(b, e) for b, e in itertools.pairwise(ends) if e - b > 20])
    return data[:begin] + _change_steps(data[begin:end], r, marker) + data[end:]


def _change_steps(data: bytes, r: random.Random, marker: Path) -> bytes:
    ops = list(pickletools.genops(data))
    ends = [pos for _, _, pos in ops[1:]] + [len(data)]
    steps = [data[pos:end] for (_, _, pos), end in zip(ops, ends, strict=True)]
    for _ in range(r.choice((1, 1, 2, 3))):
        i = r.randrange(1, len(steps) - 1)
        evil = pickle.dumps(Evil(marker, r), protocol=2)[2:-1]
        name = r.choice(
            (b"cos\nsystem\n", b"cbuiltins\nexec\n", b"ctorch\nload\n", b"ctorch.nn.modules.linear\nLinear\n")
        )
        name = r.choice((name, b"ccollections\nOrderedDict\n", b"ctorch.nn.functional\nrelu\n", b"cnumpy\ndtype\n"))
        globals_, ints = ([j for j, s in enumerate(steps) if s[:1] == c] for c in (b"c", b"J"))
        how = r.randrange(8)
        if how == 0:
            steps[i] = evil
        elif how == 1:
            steps.insert(i, evil)
        elif how == 2 and globals_:
            steps[r.choice(globals_)] = name
        elif how == 3:
            steps[r.choice(ints) if ints else i] = b"J" + r.choice((-1, 0, 2**31 - 1, 10**9)).to_bytes(
                4, "little", signed=True
            )
        elif how == 4:
            steps.insert(i, r.choice((b"R", b"b", b"\x81", b"}", b"]", b")", b"N", b"u", b"s", b"a", b"0", b"2", name)))
        elif how == 5:
            del steps[i]
        elif how == 6:
            steps.insert(i, r.choice(steps))
        else:
            steps.insert(i, b")" + b"\x86q\xfah\xfa" * r.choice((3, 40)) + r.choice((b"", b"}h\xfaNs")))
    return b"".join(steps)


def change_bytes(data: bytes, r: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 3, 20))):
        if not out:
            break
        at, length = r.randrange(len(out)), r.choice((1, 2, 4, 8))
        how = r.randrange(5)
        if how == 0:
            out[at : at + length] = r.randbytes(length)
        elif how == 1:
            out[at : at + length] = r.choice((b"\xff", b"\0", b"\x7f")) * length
        elif how == 2:
            del out[at : at + r.choice((1, 10, 1000))]
        elif how == 3:
            out[at:at] = out[at : at + r.choice((4, 100))]
        else:
            del out[at:]
    return bytes(out)


def change_archive(data: bytes, r: random.Random, marker: Path) -> bytes:
    """An archive with a file of it changed by its kind, dropped, renamed, doubled or compressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        files = {name: old.read(name) for name in old.namelist()}
    name = r.choice([n for n in files if r.random() < 0.3 or n.endswith((".json", ".pkl", "model.pt"))])
    how, squeeze = r.randrange(12), zipfile.ZIP_STORED
    root = name.split("/")[0]
    if how == 0:
        del files[name]
    elif how == 1:
        files[f"{root}/{r.choice(('code/a.py', 'constants.pkl', '../a', 'data/constants/custom_obj_0', 'x'))}"] = b"?"
    elif how == 2:
        squeeze = zipfile.ZIP_DEFLATED
        files[name] += b"\0" * r.choice((0, 3 * 10**8))
    elif how == 3:
        files[name] = change_bytes(files[name], r)
    else:
        files[name] = change_content(name, files[name], r, marker)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", squeeze) as new:
        for n, content in files.items():
            new.writestr(n, content)
            if how == 4 and n == name:
                new.writestr(n, change_bytes(content, r))
    return out.getvalue()


def change_content(name: str, data: bytes, r: random.Random, marker: Path) -> bytes:
    """A file changed by what it is."""
    if name.endswith(".json") and r.random() < 0.03:
        return b'{"a":' * 100_000 + data + b"}" * 100_000
    if name.endswith(".json"):
        return json.dumps(change_json(json.loads(data), r, marker)).encode("utf-8", "surrogatepass")
    if name.endswith((".pt", ".pt2", ".bin")) and data[:2] == b"PK":
        return change_archive(data, r, marker)
    if name.endswith((".pkl", ".pt", ".bin")) and data[:1] == b"\x80":
        return change_pickle(data, r, marker) if r.random() < 0.8 else change_bytes(data, r)
    if name.endswith(".safetensors"):
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(change_json(json.loads(data[8 : 8 + length]), r, marker)).encode("utf-8", "surrogatepass")
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    return change_bytes(data, r)


def changed(path: Path, out: Path, r: random.Random, marker: Path) -> Path:
    """A copy of a file, or of a folder with one file of it, changed."""
    if path.is_dir():
        new = shutil.copytree(path, out / path.name)
        file = r.choice(sorted(new.iterdir()))
        changed(path / file.name, new, r, marker)
        return new
    data = path.read_bytes()
    data = change_bytes(data, r) if r.random() < 0.15 else change_content(path.name, data, r, marker)
    (out / path.name).write_bytes(data)
    return out / path.name


# ------------------------------------------------------------------------------------------------------ how it is tried

FORBIDDEN = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "os.remove",
    "shutil.rmtree",
)


# Processes are forked from one that has imported everything and run nothing: torch runs no backward pass in others.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["tests.inputs.fuzzing"])


@functools.cache
def originals(folder: Path) -> dict[str, Path]:
    """A real file of each kind."""
    maker = FRESH.Process(target=_make, args=(folder,))
    maker.start()
    maker.join()
    return {name: Path((folder / f"{i}.txt").read_text()) for i, name in enumerate(KINDS)}


def _make(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for i, kind in enumerate(KINDS.values()):
        (folder / str(i)).mkdir(parents=True)
        (folder / f"{i}.txt").write_text(str(kind.make(folder / str(i))))


def use(kind: str, path: Path) -> None:
    """Do with a file what a user does."""
    KINDS[kind].use(path)


def attempt(task: Callable[..., None], *args: Any, marker: Path) -> str:
    """What comes of a task in a process of its own: "fine", "refused", or what is wrong."""
    out, back = FRESH.Pipe(duplex=False)
    child = FRESH.Process(target=_child, args=(back, task, *args))
    child.start()
    back.close()
    try:
        said = out.recv() if out.poll(4 * PATIENCE) else f"hangs for {4 * PATIENCE} s"
    except EOFError:
        said = ""
    child.join(1)
    if child.is_alive():
        child.kill()
        child.join()
    if marker.exists():
        return "RAN CODE"
    if not said and child.exitcode:
        return f"ended by {signal.Signals(-child.exitcode).name if child.exitcode < 0 else child.exitcode}"
    return said


def _child(back: Any, task: Callable[..., None], *args: Any) -> None:
    def watch(event: str, about: tuple) -> None:
        if event in FORBIDDEN:
            back.send(f"{event} {about}")
            os._exit(0)

    torch.set_num_threads(1)
    begun = resource.getrusage(resource.RUSAGE_SELF)
    faulthandler.disable()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    warnings.simplefilter("ignore")
    tempfile.gettempdir()  # which tries to write there, once
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
    resource.setrlimit(resource.RLIMIT_AS, (48 << 30, 48 << 30))
    sys.addaudithook(watch)
    said = "fine"
    try:
        task(*args)
    except FxlrpError as error:
        said = "refused" if "\n" not in str(error).strip() else f"several lines: {error}"
    except BaseException as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {error}"[:500]
        stack = traceback.format_exc()
        if "in forward" in stack and "explainer.py" not in stack:
            said = "refused"  # the network itself, run by its user
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime - begun.ru_utime - begun.ru_stime
    if seconds > SECONDS:
        said = f"took {seconds:.1f} s: {said}"
    if (more := (used.ru_maxrss - begun.ru_maxrss) / 1024) > MEGABYTES:
        said = f"took {more:.0f} MiB: {said}"
    back.send(said)
    os._exit(0)


def one(kind: str, r: random.Random, folder: Path) -> tuple[str, Path]:
    """Change a file of a kind and try it; the folder it lies in is the caller's."""
    marker = folder / "marker"
    place = Path(tempfile.mkdtemp(dir=folder))
    path = changed(originals(folder / "originals")[kind], place, r, marker)
    return attempt(use, kind, path, marker=marker), place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--files", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), help="where files are kept that went wrong")
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    bad = 0
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kinds = args.kinds.split(",")
        for i in range(args.files):
            if time.monotonic() > end:
                break
            kind = kinds[i % len(kinds)]
            said, place = one(kind, random.Random(f"{args.seed} {i}"), folder)
            counts[said if said in ("fine", "refused") else "wrong"] += 1
            if said not in ("fine", "refused"):
                bad += 1
                args.keep.mkdir(parents=True, exist_ok=True)
                shutil.copytree(place, args.keep / f"{args.seed}-{i}", dirs_exist_ok=True)
                print(f"{args.seed}-{i} {kind}: {said}", flush=True)
            shutil.rmtree(place)
            (folder / "marker").unlink(missing_ok=True)
    print(f"{sum(counts.values())} files: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
