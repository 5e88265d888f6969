"""A hook of mkdocs: each recipe becomes a page of its text and code, and the changelog one, too."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for every recipe, their list, and the changelog."""
    rows = []
    for path in sorted((HERE / "recipes").glob("*.py")):
        source = path.read_text("utf-8")
        text = ast.get_docstring(ast.parse(source)) or ""
        code = source.split('"""', 2)[2].strip()
        run = f"Run it: `python docs/recipes/{path.name}`; what it writes is in `out/recipes/`."
        drawn = (
            f"![what it ends in](../images/recipes/{path.stem}.png)\n\n"
            * (HERE / f"images/recipes/{path.stem}.png").exists()
        )
        page = f"{text}\n\n{drawn}```python\n{code}\n```\n\n{run}\n"
        files.append(File.generated(config, f"recipes/{path.stem}.md", content=page))
        title, _, rest = text.partition("\n")
        first = " ".join(rest.split()).split(". ")[0].rstrip(".")
        rows.append(f"- [{title.lstrip('# ')}]({path.stem}.md): {first}.")
    head = "# Recipes\n\nEach is a script that runs in the tests and ends in a picture or a page."
    notebooks = [f"- [{path.name}](../notebooks/{path.name})" for path in sorted((HERE / "notebooks").glob("*.ipynb"))]
    index = "\n".join([head, "", *rows, "", "## Notebooks", "", *notebooks, ""])
    files.append(File.generated(config, "recipes/index.md", content=index))
    changes = (HERE.parent / "CHANGELOG.md").read_text("utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "changes.md", content=changes))
    return files
