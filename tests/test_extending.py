"""What docs/extending.md shows runs, block after block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxlrp import ops
from fxlrp.rules import registry

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def _as_before() -> Iterator[None]:
    registry.rulebooks()  # ours are published when they are first asked for
    books, known = dict(registry._BOOKS), dict(ops.OPS)
    yield
    for kept, now in ((books, registry._BOOKS), (known, ops.OPS)):
        for added in now.keys() - kept.keys():
            del now[added]
    registry._USER.clear()


@pytest.mark.usefixtures("_as_before")
def test_every_block_runs() -> None:
    text = PAGE.read_text()
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(blocks) >= 6
    scope: dict[str, object] = {"__name__": "extending"}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), scope)
