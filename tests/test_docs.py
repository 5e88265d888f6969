"""What README and docs show works as it is written: Python and shell are run, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxlrp.cli import app
from fxlrp.inputs import load_model

pytest.importorskip("timm")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE_BY_THE_SITE = ("recipes/index.md", "changes.md", *(f"recipes/{p.stem}.md" for p in ROOT.glob("docs/recipes/*.py")))
EXAMPLE = ROOT / "examples" / "pictures" / "ring_star.png"


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind, in order."""
    parts = re.split(r"^```(.*)\n", page.read_text("utf-8"), flags=re.MULTILINE)  # text, kind, block, "", text, …
    return [block for found, block in zip(parts[1::4], parts[2::4], strict=False) if found == kind]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pictures that the snippets name, where models of hubs have random weights."""
    for name in ("cat.jpg", "dog.jpg", "a.png"):
        shutil.copy(EXAMPLE, tmp_path / name)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fxlrp.explaining.load_model", lambda spec, **how: load_model(spec, **{**how, "pretrained": False})
    )
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_python_of_the_pages_runs(page: str, place: Path) -> None:
    code = [block for block in blocks(ROOT / page, "python") if "torch.ops.mylib" not in block]
    assert code
    code = [block.replace(".compile()", ".compile(backend='eager')") for block in code]
    code = [re.sub(r"pretrained=\w+", "", block) for block in code]
    known: dict[str, object] = {}
    for block in code:
        exec(compile(block, page, "exec"), known)
    assert (place / "why.png").exists()
    assert (place / "why.html").stat().st_size < 3_000_000


@pytest.mark.parametrize("line", [
    line for page in PAGES for block in blocks(page, "") for line in block.splitlines()
    if re.match(r"fxlrp (explain|compare|export|inspect|evaluate|demo|rules|map)\b", line) and "examples/" in line
    and "--masks" not in line
])  # fmt: skip
def test_commands_of_the_pages_run(line: str, place: Path) -> None:
    args = shlex.split(line.partition("#")[0])[1:]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem in ("README", "tutorial", "guide", "text", "datasets")])
def test_commands_of_a_page_run_one_after_the_other(page: Path) -> None:
    """A folder of maps or results takes nothing else: what two commands of a page write is apart."""
    lines = [
        line.partition("#")[0] for kind in ("", "bash") for block in blocks(page, kind) for line in block.split("\n")
    ]
    wrote: dict[str, set[str]] = {}
    for line in lines:
        if found := re.match(r"fxlrp (\w+) .*-o ([\w./-]+)", line):
            wrote.setdefault(found[2].rstrip("/"), set()).add(found[1])
    assert not {
        place: commands for place, commands in wrote.items() if len(commands) > 1 and commands & {"map", "evaluate"}
    }


def test_readme_counts_what_the_tables_do() -> None:
    readme, every = (ROOT / "README.md").read_text("utf-8"), []
    for page in ("situations", "coverage"):
        row = re.search(r"^\| \*\*all\*\* \|(.*)\|$", (ROOT / "docs" / f"{page}.md").read_text("utf-8"), re.MULTILINE)
        assert row
        every.append([cell.strip() for cell in row[1].split("|")])
    (cases, right, refused, *_), (_, tried, fine, *_) = every
    assert f"{cases} small models as people write" in readme
    assert f": {right} are explained right, and {refused} refused" in readme
    rows = re.findall(
        r"^\| (?:torchvision|timm|transformers)[^|]*\| [\d ]+\| (\d+)[^|]*\| (\d+) \|", readme, re.MULTILINE
    )
    assert [sum(map(int, column)) for column in zip(*rows, strict=True)] == [int(tried), int(fine)]


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem not in ("coverage", "situations")], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    wrong = [
        link
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
        if not link.startswith("http") and not (page.parent / link).exists() and link not in MADE_BY_THE_SITE
    ]
    assert not wrong
