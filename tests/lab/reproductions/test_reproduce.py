"""The framework of `steepest reproduce`, on studies that cost nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from steepest.lab import reproductions, runs
from steepest.lab.cli import main
from steepest.lab.errors import UserError
from steepest.lab.reproductions import output
from steepest.lab.reproductions.base import Arm, Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import draw_measure, draw_series
from steepest.lab.reproductions.execution import Watcher, carry_out, plan
from steepest.lab.signals import Stop

COMPUTED: list[tuple[str, int]] = []


def run(settings: Settings, seed: int, report: Report) -> dict[str, float | list[float]]:
    """Seeds have noise in common, and a little of their own."""
    for step in range(settings["steps"]):
        report(step / settings["steps"])
    COMPUTED.append((settings["method"], seed))
    own = random.Random(f"{settings['method']} {seed}").gauss(0, 0.01)
    value = settings["level"] + random.Random(seed).gauss(0, 1.0) + own
    if settings.get("diverges_at") == seed:
        value = math.inf
    return {"loss": value, "speed": 2.0, "step": [1.0, 2.0], "curve": [value + 1, value]}


def draw(figure: Figure, results: Results) -> None:
    draw_series(figure, results, results.cases, x="step", y="curve", xlabel="step", ylabel="loss (nats)")


def draw_bars(figure: Figure, results: Results) -> None:
    draw_measure(figure, results, results.study.measures[0], results.cases, "problem")


def study(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "toy",
        "title": "A toy",
        "paper": "arXiv:0000.00000",
        "claim": "b is better.",
        "about": "Numbers out of thin air.",
        "proxies": ("All of it.",),
        "cases": (Case("one", "Problem | one"), Case("two", "Problem two", {"level": 20.0}, arms=("a", "b"))),
        "arms": (
            Arm("a", "Arm a", "the baseline", {"method": "a"}),
            Arm("b", "Arm b", "lower by one half", {"method": "b", "level": 9.5}),
            Arm("c", "Arm c", "the same", {"method": "c"}),
        ),
        "baseline": "a",
        "measures": (
            Measure(key="loss", label="loss", unit="nats", tolerance=0.2),
            Measure(key="speed", label="speed"),
        ),
        "settings": {"steps": Setting(3, "ours"), "level": Setting(10.0, "ours"), "pair": Setting((1, 2), "ours")},
        "run": run,
        "seeds": 4,
        "minutes": 1,
        "quick": {"steps": 1},
        "quick_cases": ("one",),
        "references": {("one", "a"): {"loss": 10.5}, ("one", "b"): {"loss": 900.0}},
        "reference_source": "Paper",
        "findings": lambda results: [f"The seeds are {list(results.seeds)}."],
        "figures": {"curve": ("Curves.", draw), "bars": ("Means.", draw_bars)},
    }
    return Study(**values | changes)


@pytest.fixture(autouse=True)
def _nothing_computed() -> None:
    COMPUTED.clear()


def carried_out(folder: Path, seeds: int = 4, **changes: Any) -> Results:
    results = carry_out(plan(study(**changes), seeds), folder)
    assert results is not None
    return results


def test_what_is_finished_is_not_computed_again(tmp_path: Path) -> None:
    first = carried_out(tmp_path, 2)
    assert len(COMPUTED) == 2 * (3 + 2)
    again = carried_out(tmp_path, 2)
    assert len(COMPUTED) == 10
    assert again.cells == first.cells
    output.write(first, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".md", ".svg", ".json")}
    assert set(files) == {"result.json", "table.md", "curve.svg", "bars.svg", "README.md"}
    output.write(again, tmp_path)
    assert files == {name: (tmp_path / name).read_bytes() for name in files}
    carried_out(tmp_path, 3)
    assert COMPUTED[10:] == [(method, 2) for method in ("a", "b", "c", "a", "b")]
    carry_out(plan(study(), 3), tmp_path, force=True)
    assert len(COMPUTED) == 30


def test_a_stopped_study_goes_on(tmp_path: Path) -> None:
    stop = Stop()

    class Impatient(Watcher):
        finished = 0

        def progressed(self, label: str, fraction: float) -> None:
            if self.finished == 3 and fraction > 0:
                stop.requested = True

        def ended(self, label: str, seconds: float) -> None:
            self.finished += 1

    assert carry_out(plan(study(), 2), tmp_path, stop=stop, watch=Impatient()) is None
    assert len(COMPUTED) == 3  # the fourth was given up half-way
    assert len(list((tmp_path / "cells").iterdir())) == 3
    assert not (tmp_path / "result.json").exists()
    results = carried_out(tmp_path, 2)
    assert len(COMPUTED) == 10
    assert len(set(COMPUTED)) == 6
    assert len(results.cells) == 10


def test_other_settings_or_versions_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried_out(tmp_path, 2)
    message = r"one-a-s0.json: steps is 3 there and 5 now\). Choose another --out, or .* --force"
    with pytest.raises(UserError, match=message):
        carried_out(tmp_path, 2, settings=dict(study().settings) | {"steps": Setting(5, "ours")})
    arms = (study().arms[0], Arm("b", "Arm b", "", {"method": "b", "level": 9}), study().arms[2])
    with pytest.raises(UserError, match=r"level is 9.5 there and 9 now"):
        carried_out(tmp_path, 2, arms=arms)
    monkeypatch.setattr(runs, "versions", lambda: {"python": "3", "torch": "0.0", "steepest": "0.1.0"})
    with pytest.raises(UserError, match=r"torch is '.*' there and '0.0' now"):
        carried_out(tmp_path, 2)
    assert len(COMPUTED) == 10


def test_the_numbers_of_the_table(tmp_path: Path) -> None:
    results = carried_out(tmp_path)
    case, measure = results.cases[0], results.study.measures[0]
    a, b = (list(results.values(case, arm, "loss").values()) for arm in results.study.arms[:2])
    low, high = stats.t.interval(0.95, 3, np.mean(a), stats.sem(a))
    paired = np.subtract(b, a)
    near, far = stats.t.interval(0.95, 3, paired.mean(), stats.sem(paired))
    row, other, same = output.lines(results, case)
    assert row.measured[0] == f"{np.mean(a):.3f} [{low:.3f}, {high:.3f}]"
    assert other.against == f"{paired.mean():.3f} [{near:.3f}, {far:.3f}]".replace("-", "\u2212")
    assert (row.verdict, other.verdict) == ("baseline", "better")
    assert same.verdict.startswith("not decided")
    assert (row.references, other.references, same.references) == (["10.500"], ["900.000"], ["\u2013"])
    table = output.markdown(results)
    assert "### Problem | one" in table
    assert "| Arm | Seeds | loss (nats) \\[95% interval\\] | speed \\[95% interval\\] | Difference to Arm a, " in table
    assert table.count("| Arm c |") == 1  # not an arm of the second problem
    assert len({line.count(" | ") for line in table.splitlines() if line.startswith("| Arm ")}) == 1
    record = json.loads(json.dumps(output.record(results), allow_nan=False))
    entry = next(e for e in record["results"] if (e["case"], e["arm"]) == ("one", "b"))
    assert entry["by_seed"]["loss"] == b
    assert entry["summary"]["loss"]["difference"] == pytest.approx([paired.mean(), near, far])
    assert entry["summary"]["loss"]["reference"] == 900.0
    assert record["settings"]["steps"] == {"value": 3, "source": "ours"}
    assert record["differences_to_the_paper"] == ["All of it."]
    assert measure.text(math.nan) == "\u2013"


def test_geometric_measures_have_ratios(tmp_path: Path) -> None:
    measure = Measure(key="loss", label="loss", geometric=True, digits=2, floor=1e-3)
    results = carried_out(tmp_path, measures=(measure,))
    case, (a, b, _) = results.cases[0], results.study.arms
    logs = {arm.name: np.log(list(results.values(case, arm, "loss").values())) for arm in (a, b)}
    assert results.summary(case, a, measure).mean == pytest.approx(np.exp(logs["a"].mean()))
    comparison = results.comparison(case, b, measure)
    assert comparison is not None
    assert comparison.difference == pytest.approx((logs["b"] - logs["a"]).mean())
    assert measure.difference(comparison).startswith(f"{np.exp(comparison.difference):.3f} [0.9")
    assert measure.text(5e-4) == "< 0.001"
    close = dataclasses.replace(comparison, difference=1e-5, low=-1e-5, high=3e-5)
    assert measure.difference(close) == "1.00001 [0.99999, 1.00003]"
    far = dataclasses.replace(comparison, difference=math.log(40), low=math.log(30), high=math.log(50))
    assert measure.difference(far) == "40.0 [30.0, 50.0]"


def test_no_winner_inside_the_noise_and_none_among_survivors(tmp_path: Path) -> None:
    results = carried_out(tmp_path / "plain")
    told = output.sentences(results)
    assert told[0].startswith("Problem | one, loss against Arm a (paired, 4 seeds): better: Arm b (\u22120.")
    assert told[0].endswith("not decided: Arm c.")
    assert told[1].startswith("Problem two, loss against Arm a (paired, 4 seeds): better: Arm b")
    assert told[2].startswith(
        "Loss: 1 of 2 reference numbers met within 20%; outside of both: Arm b on Problem | one ("
    )
    assert told[-1] == "The seeds are [0, 1, 2, 3]."

    single = output.sentences(carried_out(tmp_path / "plain", 1))
    assert single[0] == "With one seed the noise is unknown: these are single runs, not a result."
    assert not any("better" in sentence for sentence in single)

    arms = (study().arms[0], Arm("b", "Arm b", "", {"method": "b", "level": 9.5, "diverges_at": 2}), study().arms[2])
    lost = carried_out(tmp_path / "lost", arms=arms)
    line = output.lines(lost, lost.cases[0])[1]
    assert (line.seeds, line.verdict) == ("3", "not decided; 1 of 4 seeds diverged")
    assert "better" not in output.sentences(lost)[0]
    assert lost.series(lost.cases[0], arms[1], "curve").shape == (3, 2)

    higher = carried_out(tmp_path / "plain", measures=(Measure(key="loss", label="loss", better="higher"),))
    neither = carried_out(tmp_path / "plain", measures=(Measure(key="loss", label="loss", better=""),))
    assert [output.lines(r, r.cases[0])[1].verdict for r in (higher, neither)] == ["worse", "lower"]


def test_a_case_that_cannot_be_run_is_left_out_in_words(tmp_path: Path) -> None:
    cases = (study().cases[0], Case("two", "Problem two", missing=lambda: "scikit-learn is not installed"))
    results = carried_out(tmp_path, 2, cases=cases)
    assert output.sentences(results)[0] == "Left out: Problem two (scikit-learn is not installed)."
    assert "Problem two" not in output.markdown(results)
    with pytest.raises(UserError, match="toy cannot be run here: scikit-learn is not installed"):
        plan(study(cases=cases[1:]))
    with pytest.raises(UserError, match="--seeds must be at least 1; got 0"):
        plan(study(), 0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in reproductions.MODULES)
    assert main(["reproduce", "softsign-unigrm"]) == 2
    assert "unknown study 'softsign-unigrm'. Did you mean 'softsign-unigram'" in capsys.readouterr().err

    monkeypatch.setattr(reproductions, "find", lambda name: study(name=name))
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "toy", "--quick", "--workers", "1", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "Problem | one: loss (nats), with 95% intervals" in told
    assert "Difference to Arm a" in told
    assert "results: runs/toy-quick/README.md" in told
    page = (tmp_path / "runs" / "toy-quick" / "README.md").read_text()
    command, setting = "steepest reproduce toy --quick --seeds 2", "| steps | 1 | quick look |"
    for text in ("# A toy", command, setting, "](curve.svg)", "- All of it."):
        assert text in page
    assert "Problem two" not in page  # not in the quick look

    def stopped(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr("steepest.lab.reproductions.execution.carry_out", stopped)
    assert main(["reproduce", "toy", "--out", str(tmp_path / "x"), "--quiet"]) == 130
    assert "what is finished is saved" in capsys.readouterr().err
