"""Calls that files hold: arrays, named tensors, tables and sound are read as what they say, or refused."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fxlrp import FxlrpError
from fxlrp.inputs.calls import MOST_ROWS, read_call


def sound(path: Path, samples: np.ndarray, rate: int = 8000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def test_arrays(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "x.npy", x)
    (read,) = read_call(tmp_path / "x.npy").args
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read, x)
    np.savez(tmp_path / "two.npz", x, np.arange(3, dtype=np.int32), mask=np.array([True, False]))
    call = read_call(tmp_path / "two.npz")
    np.testing.assert_array_equal(call.args[0], x)
    assert call.args[1].dtype == torch.int64
    assert call.kwargs["mask"].dtype == torch.bool
    assert call.about == "[3, 4], [3], mask [2]"
    save_file({"1": torch.ones(2), "0": torch.zeros(1, 2), "state": torch.ones(3).half()}, tmp_path / "n.safetensors")
    call = read_call(tmp_path / "n.safetensors")
    assert [tuple(t.shape) for t in call.args] == [(1, 2), (2,)]
    assert call.kwargs["state"].dtype == torch.float32


def test_a_table(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("\ufeffage, name,income\n30,Ann,1e3\n\n40,Bob,-2\n", encoding="utf-8")
    with pytest.raises(FxlrpError, match="row 0, column name: 'Ann' is no number; name the columns"):
        read_call(file)
    call = read_call(file, columns=["income", "age"])
    np.testing.assert_array_equal(call.args[0], [[1000, 30], [-2, 40]])
    assert call.features == ("income", "age")
    np.testing.assert_array_equal(read_call(file, columns=["age"], row=1).args[0], [[40]])
    file.write_text("1,2\n3,4\n")
    call = read_call(file)
    assert call.features == ()
    np.testing.assert_array_equal(call.args[0], [[1, 2], [3, 4]])


@pytest.mark.parametrize(("kind", "scale"), [("u1", 128), ("<i2", 2**15), ("<i4", 2**31)])
def test_sound_in_any_width_is_one_channel(kind: str, scale: int, tmp_path: Path) -> None:
    wave_form = np.sin(np.arange(100) / 3) * 0.9
    stereo = np.stack([wave_form, wave_form * 0.5], 1)
    middle = 128 if kind == "u1" else 0
    call = read_call(sound(tmp_path / "a.wav", (stereo * (scale - 1) + middle).astype(kind)))
    assert call.rate == 8000
    np.testing.assert_allclose(call.args[0][0], stereo.mean(1), atol=2 / scale)


@pytest.mark.parametrize(("name", "content", "said"), [
    ("none.npy", None, "There is no file"),
    ("a.npy", b"no array", "can't be read as .npy"),
    ("a.npz", b"no zip", "can't be read as .npz"),
    ("a.safetensors", b"\xff" * 20, "can't be read as .safetensors"),
    ("a.wav", b"RIFF", "can't be read as .wav"),
    ("a.csv", b"", "is empty"),
    ("a.csv", b"a,b\n", "has no row"),
    ("a.csv", b"1,2\n3\n", "row 1: 1 cells, not 2"),
    ("a.csv", b"1,2\n3,nan\n", "row 1, column 2: 'nan' is no number"),
    ("a.csv", b"\xff\xfe\n", "can't be read as .csv"),
    ("a.csv", b"1\n" * (MOST_ROWS + 1), "--row N"),
])  # fmt: skip
def test_mistakes(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FxlrpError, match=said):
        read_call(tmp_path / name)


def test_what_is_no_call_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(FxlrpError, match="can't be read"):  # a pickle, which is not run
        read_call(tmp_path / "objects.npy")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    with pytest.raises(FxlrpError, match="which is no number"):
        read_call(tmp_path / "words.npy")
    np.savez(tmp_path / "gap.npz", **{"1": np.ones(2)})
    with pytest.raises(FxlrpError, match="number those without a name 0, 1, 2"):
        read_call(tmp_path / "gap.npz")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for how, said in (({"columns": ["c"]}, "has no column c; there are a, b"), ({"row": 1}, "there is no row 1")):
        with pytest.raises(FxlrpError, match=said):
            read_call(tmp_path / "t.csv", **how)  # type: ignore[arg-type]
    with pytest.raises(FxlrpError, match="go with a table"):
        read_call(tmp_path / "gap.npz", row=0)
    with pytest.raises(FxlrpError, match="holds no sound"):
        read_call(sound(tmp_path / "a.wav", np.zeros((0, 1), np.int16)))
