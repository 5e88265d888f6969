"""What a command needs not is not imported: torch alone takes longer than help should."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fxlrp
from fxlrp.methods import described
from fxlrp.rules.registry import parameters_of

HEAVY = ("torch", "numpy", "PIL", "matplotlib", "transformers", "timm", "torchvision", "captum", "fxlrp.rules")
COMMANDS = [
    "--help",
    "--version",
    "rules",
    "",
    "explain --help",
    "evaluate",
    "explain m.pt --shifts x",
    "tune --no",
    "no",
]


def imported_by(code: str) -> set[str]:
    """The modules that a fresh process has imported after some code."""
    report = f"import atexit, sys; atexit.register(lambda: sys.stderr.write('\\n' + ' '.join(sys.modules))); {code}"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stderr.rpartition("\n")[2].split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_usage_errors_start_at_once(command: str) -> None:
    modules = imported_by(f"sys.argv = ['fxlrp', *{command.split()}]; from fxlrp.cli import main; main()")
    assert "typer" in modules
    assert not modules.intersection(HEAVY)
    assert len(modules) < 500


def test_importing_fxlrp_imports_little() -> None:
    modules = imported_by("import fxlrp")
    assert not modules.intersection(HEAVY)
    assert len(modules) < 150


def test_each_public_name_is_imported_when_asked_for() -> None:
    lines = [
        "import fxlrp",
        *(f"fxlrp.{name}" for name in reversed(fxlrp.__all__)),
        "assert {*fxlrp.__all__} <= {*dir(fxlrp)}",
    ]
    assert "fxlrp.explainer" in imported_by("; ".join(lines))


def test_packages_need_no_import_of_their_own() -> None:
    modules = imported_by("import fxlrp; fxlrp.text.explain; fxlrp.gae.evaluate; fxlrp.rules.table")
    assert {"fxlrp.text", "fxlrp.gae"} <= modules
    with pytest.raises(AttributeError, match="has no attribute 'nothing_like_it'"):
        fxlrp.nothing_like_it  # noqa: B018


def test_rulebooks_are_described_as_they_are() -> None:
    books = {name: book for name, book in fxlrp.rulebooks().items() if not name.startswith("test")}
    listed = {d.name: (d.parameters, d.doc) for d in described()}
    assert listed == {name: (parameters_of(name), book.doc) for name, book in books.items()}
    assert next(iter(listed)) == "abslrp"


def test_a_rulebook_is_found_whatever_was_imported_before() -> None:
    assert "fxlrp.methods.hybrid" in imported_by(
        "from fxlrp.rules.registry import find_rulebook; find_rulebook('gamma')"
    )
