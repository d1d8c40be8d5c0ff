from __future__ import annotations

import csv
import io
import math

from fake_study import EVIL

from steepest.lab.report.sheets import Cell, Sheet

SHEET = Sheet(
    "s",
    "A table\nof two lines",
    ["Method", "Loss"],
    [[Cell(r"a_b \ $x$ & 50% | <b> ~^#{}"), Cell("1.500", 1.5000001)], [EVIL, Cell("\u2013", math.nan)]],
)


def test_latex_escapes_everything():
    lines = SHEET.latex().splitlines()
    assert lines[0] == "% A table of two lines"
    assert lines[1] == r"\begin{tabular}{lr}"
    assert (
        r"a\_b \textbackslash{} \$x\$ \& 50\% \textbar{} \textless{}b\textgreater{} "
        r"\textasciitilde{}\textasciicircum{}\#\{\} & 1.500 \\"
    ) in lines[5]
    assert [line for line in lines if "toprule" in line or "bottomrule" in line]
    assert r"\$a\_b\$ \&" in lines[6]


def test_markdown_has_one_cell_per_column():
    for line in SHEET.markdown().splitlines():
        bars = [i for i, c in enumerate(line) if c == "|" and line[i - 1] != "\\"]
        assert len(bars) == 3
    assert "<script>" not in SHEET.markdown()


def test_csv_has_numbers_and_empty_cells():
    rows = list(csv.reader(io.StringIO(SHEET.csv())))
    assert rows[0] == ["Method", "Loss"]
    assert rows[1][1] == "1.5"
    assert rows[2] == [EVIL, ""]
