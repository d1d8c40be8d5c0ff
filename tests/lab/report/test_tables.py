from __future__ import annotations

import csv
import json

import pytest
from fake_study import METHODS, PARAMETERS, final_id, write_study
from rich.console import Console
from typer.testing import CliRunner

from steepest.lab.cli import app
from steepest.lab.report import read_study, terminal_table, write


def records(folder):
    with (folder / "tables" / "numbers.csv").open() as file:
        return {record["method"]: record for record in csv.DictReader(file)}


def printed(folder, width=80) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(terminal_table(read_study(folder), width))
    return capture.get()


def test_csv_holds_the_numbers_of_the_files(clean_report):
    table = records(clean_report)
    assert list(table) == ["muon", "lion_muon", "sign_muon", "adamw", "signum", "lion"]
    for method in METHODS:
        finals = [
            json.loads((clean_report / "runs" / final_id(method, seed) / "final.json").read_text())
            for seed in (1, 2, 3, 4)
        ]
        record = table[method]
        for column in ("loss", "perplexity", "bits_per_byte", "tokens_per_second"):
            assert float(record[column]) == pytest.approx(sum(f[column] for f in finals) / 4, rel=1e-5)
        expected = finals[0]["state_bytes"] / PARAMETERS
        assert float(record["state_bytes_per_parameter"]) == pytest.approx(expected, rel=1e-5)
        assert record["seeds"] == "4"
    assert table["adamw"]["difference"] == ""
    assert table["lion"]["edge"] == "true"
    assert float(table["muon"]["p_t_holm"]) >= float(table["muon"]["p_t"]) > 0
    assert not any("nan" in value for record in table.values() for value in record.values())


def test_csv_counts_what_is_missing(messy_report):
    table = records(messy_report)
    assert (table["lion_muon"]["diverged"], table["lion_muon"]["seeds"]) == ("1", "3")
    assert (table["sign_muon"]["unfinished"], table["sign_muon"]["loss"]) == ("4", "")


def test_markdown_is_one_table(messy_report):
    lines = (messy_report / "tables" / "headline.md").read_text().splitlines()
    assert len(lines) == 2 + 6
    bars = [len([c for i, c in enumerate(line) if c == "|" and line[i - 1] != "\\"]) for line in lines]
    assert len(set(bars)) == 1  # the bar in a label is escaped


def test_terminal_table_fits_80_columns(clean):
    text = printed(clean)
    for label, *_ in METHODS.values():
        assert label in text
    assert "…" not in text
    assert "not decided" in text
    assert "Lion: open edge" in text
    assert text.index("Muon ") < text.index("AdamW  ") < text.index("Signum ")


@pytest.mark.parametrize(
    ("width", "gone"), [(120, []), (80, ["PPL"]), (72, ["PPL", "B/param"]), (54, ["LR", "PPL", "B/param"])]
)
def test_a_narrow_terminal_keeps_the_verdict_whole(tmp_path, width, gone):
    labels = {"adamw": "AdamW, betas of GPT-3", "muon": "Muon with Nesterov's momentum"}
    write_study(tmp_path, ("adamw", "lion_muon", "muon", "sign_muon"), seeds=(1, 2), labels=labels)
    lines = printed(tmp_path, width).splitlines()
    assert max(map(len, lines)) <= width
    titles = next(line for line in lines if "Val loss" in line)
    assert [title for title in ("LR", "PPL", "B/param") if title not in titles] == gone
    assert titles.rstrip().endswith("Verdict")
    rows = [line.rstrip() for line in lines if "±" in line and "vs" not in line]
    assert len(rows) == 4
    assert all(row.endswith(("baseline", "better", "worse", "not decided")) for row in rows)


def test_terminal_table_shows_labels_as_they_are(tmp_path):
    write_study(tmp_path, ("adamw", "muon"), seeds=(1,), labels={"muon": "[bold]M[/bold]"})
    text = printed(tmp_path, 120)
    assert " [bold]M[/bold]  " in text  # in the table
    assert "[bold]M[/bold]: " in text  # and below it


def test_command_writes_and_prints(clean, tmp_path):
    target = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(clean), "--out", str(target)])
    assert result.exit_code == 0, result.output
    assert target.exists()
    assert f"report: {target}" in result.output
    assert "Muon reached" in result.output


def test_command_opens_the_page_only_when_asked(clean, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    monkeypatch.setattr("steepest.lab.report.page.write_figures", lambda *_: [])
    arguments = ["report", str(clean), "--out", str(tmp_path / "page.html")]
    CliRunner().invoke(app, arguments)
    assert opened == []
    CliRunner().invoke(app, [*arguments, "--open"])
    assert opened == [(tmp_path / "page.html").resolve().as_uri()]


def test_command_help_has_an_example():
    result = CliRunner().invoke(app, ["report", "--help"])
    assert "steepest report runs/demo" in result.output


def test_command_names_what_is_wrong(tmp_path, capsys):
    from steepest.lab.cli import main

    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert "study.json" in error


def test_a_full_disk_says_so(clean, tmp_path, monkeypatch):
    import errno

    from steepest.lab.errors import UserError

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("steepest.lab.report.page.write_figures", full)
    with pytest.raises(UserError, match="disk is full"):
        write(clean, tmp_path / "page.html")
