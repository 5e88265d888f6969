"""Unpickling a whole module without letting its file run code.

A pickle is a program for a small stack machine: GLOBAL names any importable object, REDUCE calls it, BUILD sets its
state.  Before torch's weights-only unpickler runs that program, three things are checked:

1. every global is a layer, a model's config, an activation function, or plain data (`allowlist`);
2. the program is run on stand-ins instead of objects (`pickled_program`): layers and configs are made empty and given
   the whole of their state, never constructed; the only callables called are those that rebuild tensors, containers and
   enums, by arguments as torch.save writes them; tensors lie within their numbers; no class but torch.nn's own and no
   hook is left lying in the state, where the libraries' code might find and call it;
3. what comes out is run by the libraries' own `forward`, and an attribute it calls is a layer or an activation.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from fxlrp.errors import FxlrpError
from fxlrp.inputs.allowlist import STAND_INS, Array, Dtype, Inert, admit
from fxlrp.inputs.archive import Archive
from fxlrp.inputs.pickled_calls import is_plain
from fxlrp.inputs.pickled_program import LONGEST, check_program, globals_of
from fxlrp.inputs.pickled_values import Refused

SAVE_OR_TRUST = (
    "Save its state dict and pass --arch, or pass --trust if you trust whoever made it (it may run any code)."
)


def load_pickle(path: Path, *, trust: bool = False) -> Any:
    """Return what torch.save wrote to a file: a module, a state dict, or a checkpoint around one; on the CPU.

    Raises FxlrpError, without having run anything of the file's, if it wants more than layers and tensors.
    """
    try:
        if trust:
            if "" not in sys.path:
                sys.path.append("")  # classes are looked for in the current folder too, as python itself does
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(_checked(path)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FxlrpError:
        raise
    except Refused as error:
        raise FxlrpError(f"{path} is a pickle that {error}, as no saved model does. {SAVE_OR_TRUST}") from error
    except (ImportError, AttributeError) as error:
        raise FxlrpError(
            f"{path} needs the code it was saved with, which Python does not find here ({error}): "
            "run from the folder that holds it, or save the state dict and pass --arch path/to/file.py:factory."
        ) from error
    except Exception as error:
        raise FxlrpError(
            f"{path} is not a model file fxlrp can read, or it is damaged; give a .pt or .pth that torch.save wrote, "
            "a .safetensors, a .pt2 or a folder of Hugging Face's."
        ) from error


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is an archive of TorchScript."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # zipfile raises more than BadZipFile for damaged files
        return False


def check_pickle(path: Path) -> None:
    """Raise FxlrpError if a file of torch.save does more than hold tensors, as `load_pickle` does."""
    try:
        _checked(path)
    except FxlrpError:
        raise
    except Exception as error:
        raise FxlrpError(f"{path} holds more than tensors, or is damaged ({error}); give a .safetensors.") from error


def _checked(path: Path) -> list[Any]:
    """Check that a file is harmless, and return what it names beside plain data, as torch.load wants to be told.

    Raises FxlrpError or ValueError, saying why, if the file is not.
    """
    if not zipfile.is_zipfile(path):
        _check_old(path)
        return []
    with Archive(path) as archive:
        program = archive.read("data.pkl", LONGEST)
        sizes = {name: archive.size(name) for name in archive.names}
    reader = torch._C.PyTorchFileReader(str(path))  # what torch.load reads with: it should see the same
    size = getattr(reader, "get_record_size", lambda name: len(reader.get_record(name)))  # new in torch 2.12
    same = {name: size(name) for name in reader.get_all_records()} == sizes
    if not same or reader.get_record("data.pkl") != program:
        raise ValueError("an archive that can be read in two ways")
    admitted = {name: admit(name) for name in sorted(map(str, globals_of(program))) if not is_plain(name)}
    if refused := [name for name, value in admitted.items() if value is None]:
        raise FxlrpError(
            f"{path} is a pickle that wants more than layers and tensors: {', '.join(refused)}. {SAVE_OR_TRUST}"
        )
    check_program(program, admitted, archive.has_storage)
    allowed: list[Any] = [(value, name) for name, value in (*admitted.items(), *STAND_INS.items())]
    # The unpickler looks instances up by their type; a name with a newline cannot be written in a pickle.
    allowed += [(Inert, "\nInert"), (Dtype, "\nDtype"), (Array, "\nArray")]
    return allowed


def _check_old(path: Path) -> None:
    """Check tensors as torch saved them before 1.6: five pickles, one behind the other, and then the numbers.

    Raises FxlrpError if a pickle does more than hold tensors, and ValueError if it is none.
    """
    sizes: dict[str, int] = {}

    def fits(key: str, count: int) -> bool:
        return sizes.setdefault(key, count) == count and sum(sizes.values()) <= path.stat().st_size

    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        try:
            for _ in range(5):  # a magic number, the version, sizes of integers; the tensors; their order
                check_program(file, {}, fits)
        except Exception as error:
            if start != b"\x80\x02":
                raise ValueError("no pickle") from error
            raise FxlrpError(
                f"{path} is a pickle in an old format that cannot be checked: save it again with torch.save, "
                "or pass --trust if you trust whoever made it (it may run any code)."
            ) from error
