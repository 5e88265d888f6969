"""Report an evaluation on texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fxlrp.gae.report import Report
from fxlrp.gae.texts.removal import WAYS
from fxlrp.text.attribution import TextAttribution

SHORT = {"hidden": "hid", "dropped": "drop", "replaced": "mask"}
MEASURES = {  # with their headings in a table
    "hidden_abpc": "ABPC",
    "dropped_abpc": "by drop",
    "replaced_abpc": "by mask",
    "comprehensiveness": "compreh.",
    "sufficiency": "suffic.",
    **{f"{way}_{order}_auc": f"{order.replace('morf', 'MoRF').replace('lerf', 'LeRF')} {SHORT[way]}"
       for way in WAYS for order in ("morf", "lerf")},
    "auprc": "AUPRC",
    "average_precision": "AP",
    "token_f1": "token F1",
    "max_sensitivity": "sensitive",
    "randomization": "randomized",
}  # fmt: skip
BLOCKS = (
    ("hidden_abpc", "dropped_abpc", "replaced_abpc", "comprehensiveness", "sufficiency"),
    tuple(f"{way}_{order}_auc" for way in WAYS for order in ("morf", "lerf")),
    ("auprc", "average_precision", "token_f1", "max_sensitivity", "randomization"),
)
RIVALS = {
    "removal": {
        **{short: f"{way}_abpc" for way, short in SHORT.items()},
        "compreh.": "comprehensiveness",
        "suffic.": "sufficiency",
    }
}
Shown = Callable[[str, Sequence[int]], list[TextAttribution]]


@dataclass(frozen=True)
class TextReport(Report):
    """The results of an evaluation on texts: a `Report` of other measures, whose `agreement` is of ways of removal."""

    headings: ClassVar[Mapping[str, str]] = MEASURES
    rivals: ClassVar[Mapping[str, Mapping[str, str]]] = RIVALS
    blocks: ClassVar[Sequence[Sequence[str]]] = BLOCKS

    @property
    def ways(self) -> list[str]:
        """Return the ways in which tokens were taken out."""
        return [way for way in WAYS if f"{way}_abpc" in self.measures]

    def extremes(self, method: str, count: int = 3) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return a method's rows of highest ABPC, the best first, and of lowest, the worst first."""
        mine = [r for r in self.rows if r["method"] == method]
        ranked = sorted(mine, key=lambda r: (-r[self.first], r["sample"]))
        return ranked[:count], ranked[::-1][:count]

    def save(self, folder: str | Path, *, examples: Any = None) -> Path:
        """Write results.parquet (a row per sample and method), report.json and report.html, and return the folder.

        examples(method, samples) → attributions of the best and worst three.

        Raises FxlrpError if the folder can't be written.
        """
        from fxlrp.gae.texts.html import page

        return self.write(Path(folder), lambda: page(self, examples))
