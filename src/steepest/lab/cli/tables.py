"""Plain tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


def table(rows: Sequence[Sequence[str]]) -> Table:
    """A table of the first row as titles and the others below; the first column is text, the others numbers."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, title in enumerate(rows[0]):
        made.add_column(Text(title), justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for row in rows[1:]:
        made.add_row(*map(Text, row))
    return made
