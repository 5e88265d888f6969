"""TextAttribution: relevance of tokens and words, and how it is shown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from fxlrp.errors import FxlrpError, counted
from fxlrp.show.colours import shade
from fxlrp.show.files import FIGURES, drawn, write
from fxlrp.show.words import AGAINST
from fxlrp.text.html import fragment, page
from fxlrp.text.words import Piece, words_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Asked:
    """What a row of an attribution answers: why `target` and not `contrast`.

    probability: the model's own of the target, in 0…1.  token: the place among the tokens of the one that is asked
    about (masked, labelled, generated), or None.  score: what the model says where that is one number, as a regression.
    """

    target: str
    contrast: str | None = None
    probability: float | None = None
    token: int | None = None
    score: float | None = None

    @property
    def title(self) -> str:
        """Put the question in words."""
        against = "" if self.contrast in (None, *WAYS) else f", not {self.contrast}"
        value = "" if self.score is None else f" ({self.score:.4g})"
        return f"{self.target}{against}{value if self.probability is None else f' ({self.probability:.1%})'}"

    @property
    def against(self) -> str:
        """What the target was set against, in words; nothing without a contrast, or where the title says it."""
        return WAYS.get(self.contrast or "", "")


WAYS = AGAINST
ASKED = ("target", "contrast", "probability", "token")
FORMAT = "fxlrp text attribution 1"
WRITTEN = (".json", ".csv", ".html", *FIGURES)


@dataclass(frozen=True, eq=False)
class TextAttribution:
    """The relevance of each token for each thing that was asked.

    segments: the texts, one after the other: the text, its pair, the continuation.
    pieces: the tokens, and where they stand in the segments; those added to the text (as [CLS]) stand nowhere.
    matrix: relevance, float32 [R, N]: a row per question, a column per token; red, for the target, is positive.
    asked: the R questions.
    dropped: tokens left out because the model takes no more.
    rules: the rulebook's name.
    """

    segments: list[str]
    pieces: list[Piece]
    matrix: Tensor
    asked: list[Asked]
    dropped: int = 0
    rules: str = ""

    @property
    def tokens(self) -> list[str]:
        """Return the N tokens, as the tokenizer writes them."""
        return [p.token for p in self.pieces]

    @property
    def scores(self) -> Tensor:
        """Return the relevance of the tokens [N] for the first question, often the only one."""
        return self.matrix[0]

    @property
    def words(self) -> list[tuple[str, float]]:
        """Return the words of the text and their relevance, the sum over their tokens, for the first question."""
        return [(word, float(r)) for word, r in zip(self._words()[0], self.word_matrix[0], strict=True)]

    @property
    def word_matrix(self) -> Tensor:
        """Return the relevance of the W words for each question [R, W]."""
        names, columns = self._words()
        out = torch.zeros(len(self.matrix), len(names))
        tokens = [i for i, c in enumerate(columns) if c is not None]
        places = torch.tensor([columns[i] for i in tokens], dtype=torch.int64)
        return out.index_add(1, places, self.matrix[:, tokens])

    def _words(self) -> tuple[list[str], list[int | None]]:
        """Return the words that have tokens, and each token's place among them, None if it is part of no word."""
        words = words_of(self.segments, self.pieces)
        places = {w: i for i, w in enumerate(dict.fromkeys(w for w in words if w is not None))}
        names = [self.segments[s][start:end] for s, start, end in places]
        return names, [None if w is None else places[w] for w in words]

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, which: int | str) -> TextAttribution:
        """Return the attribution for one question, by its place or the name of its target.

        Raises FxlrpError, naming those there are, if it was not asked.
        """
        names = [a.target.strip() for a in self.asked]
        if isinstance(which, str) and which.strip() in names:
            which = names.index(which.strip())
        if isinstance(which, str) or not -len(names) <= which < len(names):
            raise FxlrpError(f"{which!r} was not asked; there are {', '.join(dict.fromkeys(names))}.")
        which %= len(names)
        return replace(self, matrix=self.matrix[which : which + 1], asked=[self.asked[which]])

    def show(self, console: Console | None = None) -> None:
        """Print the text, a line per question: red spoke for the target, blue against it, the stronger the more; where
        there are no colours, each word with its relevance in parts of the largest."""
        console = console or Console(highlight=False)
        if self.dropped:
            console.print(f"[yellow]note:[/] {self._note}", soft_wrap=True)
        for row, asked in zip(self.matrix, self.asked, strict=True):
            console.print(Text.assemble((asked.title, "bold"), f"  {self._small_print(asked)}"), soft_wrap=True)
            text = self._coloured(row, asked) if console.color_system else self._numbered(row)
            console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _numbered(self, row: Tensor) -> str:
        """Write each word's relevance, of a row [N] by tokens, behind it in parts of the largest: `not(+1.00)`."""
        places = words_of(self.segments, self.pieces)
        sums: dict[tuple[int, int, int], float] = {}
        for place, r in zip(places, row.tolist(), strict=True):
            if place is not None:
                sums[place] = sums.get(place, 0.0) + r
        top = max(map(abs, sums.values()), default=0) or 1.0
        texts = list(self.segments)
        for (segment, _, end), r in sorted(sums.items(), reverse=True):
            if abs(r) > 0.005 * top:
                texts[segment] = f"{texts[segment][:end]}({r / top:+.2f}){texts[segment][end:]}"
        return "  " + " ".join(" ".join(texts).split("\n"))

    def _coloured(self, row: Tensor, asked: Asked) -> Text:
        """Colour the text by a row of relevance [N]; the token that was asked about is underlined."""
        out, top = Text("  "), float(row.abs().max())
        for i, (gap, shown, piece) in enumerate(laid_out(self.segments, self.pieces)):
            r = float(row[i]) / top if top else 0.0
            style = f"black on rgb({','.join(str(v) for v in shade(r))})" if abs(r) > 0.02 else ""
            out.append(gap.replace("\n", " "))
            added = piece.end <= piece.start
            out.append(
                shown.replace("\n", " "),
                f"{'italic ' if added else ''}{'underline ' if i == asked.token else ''}{style}",
            )
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, ready for JSON."""
        names, columns = self._words()
        return {
            "format": FORMAT,
            "segments": list(self.segments),
            "tokens": self.tokens,
            "spans": [[p.segment, p.start, p.end] for p in self.pieces],
            "words": names,
            "word_of_token": columns,
            "questions": [
                {
                    "target": a.target,
                    "contrast": a.contrast,
                    "probability": a.probability,
                    "score": a.score,
                    "token": a.token,
                    "scores": row.tolist(),
                    "word_scores": words.tolist(),
                }
                for a, row, words in zip(self.asked, self.matrix, self.word_matrix, strict=True)
            ],
            "dropped": self.dropped,
            "rules": self.rules,
        }

    def _repr_html_(self) -> str:
        return fragment([self._panel()])

    def _panel(self) -> dict[str, Any]:
        """Return what a page needs to show the attribution, as JSON takes it."""
        return {
            "pieces": [
                {"gap": gap, "text": shown, "added": piece.end <= piece.start, "segment": piece.segment}
                for gap, shown, piece in laid_out(self.segments, self.pieces)
            ],
            "rows": [[float(f"{v:.5g}") for v in row] for row in self.matrix.tolist()],
            "titles": [a.title for a in self.asked],
            "tokens": [a.token for a in self.asked],
            "asked": [self._small_print(a) for a in self.asked],
            "words": [self._in_words(row) for row in self.word_matrix.tolist()],
            "note": self._note if self.dropped else "",
        }

    def _small_print(self, asked: Asked) -> str:
        """Name what a question set the target against, and the rulebook."""
        return " · ".join(filter(None, (asked.against, self.rules)))

    @property
    def _note(self) -> str:
        gone = counted(self.dropped, "token")
        return f"{gone} at the end {'is' if self.dropped == 1 else 'are'} left out: the model takes no more."

    def _in_words(self, row: Sequence[float], most: int = 10) -> list[str]:
        """Say of the words with the most relevance how much it is, and whether for or against, for who can't see it."""
        names, total = self._words()[0], sum(map(abs, row)) or 1.0
        seen = [i for i, r in enumerate(row) if abs(r) >= 0.005 * total]
        order = sorted(seen, key=lambda i: -abs(row[i]))[:most]
        sides = {i: "for" if row[i] > 0 else "against" for i in order}
        return [f"{names[i]} (word {i + 1}): {abs(row[i]) / total:.0%} of relevance, {sides[i]} it" for i in order]

    def plot(self, *, colours: str = "red-blue") -> Figure:
        """Return a matplotlib figure of the words, coloured by relevance, which can be changed.

        colours: red-blue, lightness (to be read without telling red from blue) or a map of matplotlib's.

        Raises FxlrpError for colours that can't be.
        """
        from fxlrp.text.figure import plot

        return plot(self, colours=colours)

    def save(self, path: str | Path, *, colours: str = "red-blue", dpi: float = 100) -> Path:
        """Write it to a file and return its path: all of it (.json), which `fxlrp.load` reads; a row for each question
        and token (.csv); a page (.html); or a figure (.png, .svg, .pdf, .jpg, .webp), by `plot`.

        colours, dpi: of a figure.

        Raises FxlrpError for another extension, and a path that can't be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".html":
            return self.to_html(path)
        if path.suffix.lower() in FIGURES:
            return write(path, drawn(self.plot(colours=colours), path.suffix.lower(), dpi, self.to_dict()))
        if path.suffix.lower() == ".json":
            return write(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        if path.suffix.lower() != ".csv":
            raise FxlrpError(f"{path} has no extension that is written; give a name that ends in {', '.join(WRITTEN)}.")
        file = io.StringIO()
        rows = csv.writer(file)
        rows.writerow(["target", "contrast", "token", "segment", "start", "end", "relevance"])
        for asked, scores in zip(self.asked, self.matrix.tolist(), strict=True):
            for p, r in zip(self.pieces, scores, strict=True):
                rows.writerow([asked.target, asked.contrast or "", p.token, p.segment, p.start, p.end, f"{r:.6g}"])
        return write(path, file.getvalue())

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> TextAttribution:
        """Make it of what `to_dict` returned.  Raises FxlrpError for anything else."""
        try:
            pieces = [Piece(token, *span) for token, span in zip(held["tokens"], held["spans"], strict=True)]
            matrix = torch.tensor([q["scores"] for q in held["questions"]]).reshape(-1, len(pieces))
            asked = [Asked(**{f: q[f] for f in ASKED}, score=q.get("score")) for q in held["questions"]]
            return cls(list(held["segments"]), pieces, matrix, asked, int(held["dropped"]), held.get("rules", ""))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FxlrpError(f"This is no attribution of a text: {error!r}.") from error

    def to_html(self, path: str | Path) -> Path:
        """Write one HTML file that needs nothing else, and return its path.

        Tokens are coloured, with the score on hover; buttons switch between questions, as does a click on a token that
        was asked about.  Raises FxlrpError if the path can't be written.
        """
        return write_html(path, [self])


def write_html(path: str | Path, attributions: Sequence[TextAttribution], model: str = "") -> Path:
    """Write several attributions to one HTML file and return its path, as `TextAttribution.to_html` does.

    model: its name, for the title.

    Raises FxlrpError if the path can't be written.
    """
    return write(Path(path), page([a._panel() for a in attributions], model))


def side_by_side(answers: Mapping[str, TextAttribution]) -> TextAttribution:
    """Make one attribution of several answers about one text, by name: a row for each, which its name begins."""
    rows = [replace(row, target=f"{name}: {row.target}") for name, a in answers.items() for row in a.asked]
    matrix = torch.cat([a.matrix for a in answers.values()])
    return replace(next(iter(answers.values())), matrix=matrix, asked=rows, rules="")


def laid_out(segments: Sequence[str], pieces: Sequence[Piece]) -> list[tuple[str, str, Piece]]:
    """Return each piece with the text between it and the one before, and the text it is shown as."""
    out: list[tuple[str, str, Piece]] = []
    segment = at = 0
    for p in pieces:
        gap = ""
        if p.segment != segment:
            segment, at, gap = p.segment, 0, "\n"
        if p.end <= p.start:
            out.append((gap or (" " if out else ""), p.token, p))
            continue
        text = segments[segment]
        start = max(p.start, at)
        gap += text[at:start] or (" " if not at and out and not gap else "")  # behind a token that was added
        out.append((gap, text[start : p.end].replace("\n", "↵\n"), p))
        at = max(at, p.end)
    return out
