"""A table and its four forms: HTML (by the template), Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\u2212": "$-$", "\u2013": "--"},
    **{"\u00b1": r"$\pm$", "\u00d7": r"$\times$", "\u2026": r"\ldots{}"},
}


@dataclass(frozen=True)
class Cell:
    """What people read, and the number behind it for the CSV file (None: the text)."""

    text: str
    value: Any = None


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: of its files.
        title: what it shows, for its caption.
        columns: titles; the first column names the row.
        rows: cells, one per column; a plain string is a cell.
        note: what must be said about it; empty if nothing.
        numeric: whether a column is right-aligned; by default all but the first.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    numeric: Sequence[bool] = field(default=())

    @property
    def body(self) -> list[list[Cell]]:
        """The rows, all of cells."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    @property
    def right(self) -> list[bool]:
        """Whether each column is right-aligned."""
        return list(self.numeric) or [i > 0 for i in range(len(self.columns))]

    def markdown(self) -> str:
        """A Markdown table, for a README or an issue."""
        rule = " | ".join("---:" if right else "---" for right in self.right)
        lines = [" | ".join(map(_markdown, self.columns)), rule]
        lines += [" | ".join(_markdown(cell.text) for cell in row) for row in self.body]
        return "".join(f"| {line} |\n" for line in lines)

    def latex(self) -> str:
        """A LaTeX tabular with the rules of the booktabs package."""
        form = "".join("r" if right else "l" for right in self.right)
        head = " & ".join(map(_latex, self.columns))
        body = "".join("  " + " & ".join(_latex(cell.text) for cell in row) + r" \\" + "\n" for row in self.body)
        return (
            f"% {' '.join(self.title.split())}\n\\begin{{tabular}}{{{form}}}\n  \\toprule\n  {head} \\\\\n  \\midrule\n"
            f"{body}  \\bottomrule\n\\end{{tabular}}\n"
        )

    def csv(self) -> str:
        """Numbers with six significant digits, empty where there are none."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_plain(cell) for cell in row] for row in self.body)
        return file.getvalue()


def _plain(cell: Cell) -> Any:
    if isinstance(cell.value, float):
        return f"{cell.value:.6g}" if math.isfinite(cell.value) else ""
    return cell.text if cell.value is None else cell.value


def _markdown(text: str) -> str:
    for character in "\\|<>*_`[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
