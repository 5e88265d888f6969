"""The exceptions that fxlrp raises for what a caller can mend, its warnings, and what is put in words."""

from __future__ import annotations

import re


class FxlrpError(Exception):
    """Something the caller can mend; the message says what, where and what to do."""


class InputsRefused(FxlrpError):
    """The model itself refuses the inputs of a call."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def counted(count: int, what: str) -> str:
    """So many of something: 1 row, 2 rows."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def with_kind(error: BaseException) -> str:
    """An exception's message, behind its kind unless it is our own."""
    return str(error) if isinstance(error, FxlrpError) else f"{type(error).__name__}: {error}"


def missing(package: str, what: str = "This") -> FxlrpError | None:
    """The error that something needs a package, with the extra of fxlrp's that brings it; None if none does."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        wanted = requires("fxlrp") or []
    except PackageNotFoundError:  # it is run from where its files are
        return None
    for line in wanted:  # such as "ray[data]>=2; extra == 'data'"
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"](\w+)['\"]", line)
        if name and extra and name[0].lower() == package.partition(".")[0]:
            return FxlrpError(f"{what} needs {name[0]}, which is not installed: pip install 'fxlrp[{extra[1]}]'.")
    return None


class NoRelevance(UserWarning):
    """A map is zero although the score is not, or is not finite."""


class NoGlyphs(UserWarning):
    """No font has some letters of a figure."""


OWN_GENERATOR = (
    "draws by a torch.Generator of the model's own, which a graph can't start anew at every call: let it draw by "
    "torch's (convert(…, seed=…) says which draw), or draw before the call and give the model what was drawn."
)
"""What is wrong with a draw that is none of torch's own, and what to do."""
PAD = (
    "pad the sequences instead (pad_sequence, or to_padded_tensor outside of the model), and leave out by a mask what "
    "is padded"
)
"""What to do instead of a nested tensor."""
