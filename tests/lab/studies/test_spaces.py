"""Grids of several axes, their edges, and points drawn by a sampler."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from steepest.lab.config import Range, StudyConfig, StudyMethod, validate
from steepest.lab.errors import UserError
from steepest.lab.studies.changes import changes, other_versions
from steepest.lab.studies.search import GridTuning, SampledTuning
from steepest.lab.studies.spaces import Grid, Judgement, key, on_edge, ranges, starting_grid


def judge(grid: Grid, loss: Any, **options: Any) -> Judgement:
    return grid.judge({key(point): loss(**point) for point in grid.points()}, **options)


def bowl(lr: float, ratio: float) -> float:
    return math.log(lr / 3e-3) ** 2 + math.log(ratio / 0.3) ** 2


def test_every_axis_has_edges_of_its_own() -> None:
    grid = Grid({"lr": (1e-3, 4e-3, 2e-3), "ratio": (0.01, 0.1)})
    assert grid.points()[:3] == [{"lr": 1e-3, "ratio": 0.01}, {"lr": 1e-3, "ratio": 0.1}, {"lr": 2e-3, "ratio": 0.01}]
    found = judge(grid, bowl)
    assert found.best == {"lr": 4e-3, "ratio": 0.1}
    assert found.open_axes == ("lr", "ratio")
    assert found.beyond == {"lr": 8e-3, "ratio": 1.0}
    inner = judge(grid.grown({"lr": 8e-3, "ratio": 1.0}), bowl)
    assert (inner.best, inner.open_axes) == ({"lr": 4e-3, "ratio": 0.1}, ())


def test_axes_without_an_edge() -> None:
    options = Grid({"lr": (1.0,), "nesterov": (False, True), "betas": ((0.9, 0.9), (0.95, 0.99))})
    found = judge(options, lambda lr, nesterov, betas: nesterov + betas[0])
    assert (found.best, found.open_axes) == ({"lr": 1.0, "nesterov": False, "betas": (0.9, 0.9)}, ())
    decay = Grid({"lr": (1.0,), "weight_decay": (0.1, 0.0)})
    assert judge(decay, lambda lr, weight_decay: weight_decay).open_axes == ()  # below 0 there is nothing
    assert judge(decay, lambda lr, weight_decay: -weight_decay).beyond == {"weight_decay": 0.2}
    period = Grid({"lr": (1.0,), "period": (1, 2, 5)})
    assert judge(period, lambda lr, period: period, allowed=lambda p: p["period"] >= 1).open_axes == ()
    assert judge(period, lambda lr, period: -period).beyond == {"period": 12}  # a whole number
    endless = Grid({"lr": (1.0,), "period": (2, 5, math.inf)})
    assert judge(endless, lambda lr, period: 1 / period).open_axes == ()


def test_a_grid_that_diverges_everywhere_grows_towards_lower_rates() -> None:
    found = judge(Grid({"lr": (1e-3, 2e-3), "ratio": (0.1, 0.2)}), lambda lr, ratio: None)
    assert (found.best, found.beyond) == (None, {"lr": 5e-4})


def test_growth_is_counted_per_axis_and_recorded_per_point() -> None:
    tuning = GridTuning(Grid({"lr": (1e-3, 2e-3)}), 2, lambda point: True)
    for rounds in (1, 2):
        found, more = tuning.judge({key(point): -point["lr"] for point in tuning.points()})
        assert more
        assert tuning.extension(tuning.points()[-1]) == rounds
    found, more = tuning.judge({key(point): -point["lr"] for point in tuning.points()})
    assert (found.open_axes, more) == (("lr",), False)
    assert tuning.axes() == {"lr": [1e-3, 2e-3, 4e-3, 8e-3]}


def test_a_grid_grows_again_to_what_was_tried_and_no_further() -> None:
    tuning = GridTuning(Grid({"lr": (1e-3, 2e-3)}), 0, lambda point: True, [{"lr": 2e-3}, {"lr": 4e-3}])
    assert tuning.judge({key(point): -point["lr"] for point in tuning.points()})[1]
    found, more = tuning.judge({key(point): -point["lr"] for point in tuning.points()})
    assert (found.best, found.open_axes, more) == ({"lr": 4e-3}, ("lr",), False)


def study(**changed: Any) -> StudyConfig:
    return validate(StudyConfig, {"methods": ["adamw"], **changed})


def test_a_number_of_trials_makes_a_ladder_around_the_default() -> None:
    grid = starting_grid(StudyMethod(name="lion"), study(trials=5), (1e-4, 2e-4, 3e-4, 9e-4))
    assert grid.axes == {"lr": (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)}
    listed = StudyMethod(name="lion", grid=(1e-4, 1e-3))
    assert starting_grid(listed, study(trials=5), (1.0,)).axes == {"lr": (1e-4, 1e-3)}
    two = StudyMethod(name="lion", space={"betas": ([0.9, 0.99], [0.95, 0.98])})
    assert len(starting_grid(two, study(), (1e-4, 2e-4)).points()) == 4


@pytest.mark.parametrize("kind", ["random", "quasi-random"])
def test_drawn_points_depend_on_the_seed_and_not_on_interruptions(tmp_path: Path, kind: Any) -> None:
    axes = {"lr": Range(low=1e-4, high=1e-1), "betas": ([0.9, 0.99], [0.95, 0.98])}

    def tuning(name: str, seed: int = 3) -> SampledTuning:
        return SampledTuning(tmp_path / name, "lion", axes, kind=kind, trials=16, seed=seed)

    assert tuning("a").draw(1) == 16  # all at once
    again = tuning("b")
    again._trials = 5
    again.draw(1)
    assert tuning("b").draw(1) == 11  # as if a first process had been killed after five
    points = tuning("a").points()
    assert tuning("b").points() == points
    other = tuning("c", seed=4)
    other.draw(1)
    assert other.points() != points
    rates = sorted(math.log10(point["lr"]) for point in points)
    assert -4 <= rates[0] < -3 < -2 < rates[-1] <= -1
    assert {tuple(point["betas"]) for point in points} == {(0.9, 0.99), (0.95, 0.98)}
    if kind == "quasi-random":  # Sobol points fill every sixteenth of the range, to rounding
        assert max(b - a for a, b in itertools.pairwise(rates)) < 2 * 3 / 16


def test_tpe_draws_what_workers_can_take_and_goes_where_losses_are_low(tmp_path: Path) -> None:
    axes = {"lr": Range(low=1e-4, high=1.0)}
    tuning = SampledTuning(tmp_path / "j", "lion", axes, kind="tpe", trials=40, seed=0)
    assert tuning.draw(3) == 3
    while len(tuning.points()) < 40 or tuning.draw(1):
        ended = [(p, None if p["lr"] > 0.5 else abs(math.log10(p["lr"]) + 3)) for p in tuning.points()]
        tuning.tell(ended)
        tuning.draw(1)
    late = [abs(math.log10(p["lr"]) + 3) for p in tuning.points()[20:]]
    assert sorted(late)[len(late) // 2] < 0.75  # of a random search it is 1
    found, more = tuning.judge({key(p): abs(math.log10(p["lr"]) + 3) for p in tuning.points()})
    assert (found.open_axes, more) == ((), False)


def test_the_ends_of_a_range_are_open() -> None:
    axis = Range(low=1e-4, high=1e-2)
    assert [on_edge(axis, v, 10) for v in (1.1e-4, 2e-4, 1e-3, 9e-3)] == [True, False, False, True]
    assert on_edge(Range(low=0.0, high=1.0, log=False), 0.97, 10)
    assert ranges(StudyMethod(name="lion"), (1e-4, 4e-4))["lr"] == Range(low=5e-5, high=8e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": [{"name": "lion", "grid": [1e-3], "space": {"lr": [1e-3]}}]}, "as grid or as space.lr, not both"),
        ({"methods": [{"name": "lion", "space": {"lr": [1e-3, 1e-3]}}]}, "needs different values"),
        ({"methods": [{"name": "lion", "options": {"period": 2}, "space": {"period": [2]}}]}, "fixed in options"),
        ({"methods": [{"name": "lion", "space": {"lr": {"low": 1e-3, "high": 1e-2}}}]}, "a grid needs a list"),
        ({"search": "random"}, "needs the number of trials"),
        (
            {"search": "tpe", "trials": 4, "methods": [{"name": "lion", "space": {"lr": {"low": 1, "high": 1}}}]},
            "empty",
        ),
        ({"search": "anneal"}, "search: input should be 'grid', 'random', 'quasi-random' or 'tpe'"),
        ({"name": "../elsewhere"}, "without / or"),
        ({"name": "two\nlines"}, "without / or"),
        ({"name": "red\x1b[31m"}, "without / or"),
        ({"seeds": [0, 1]}, "different from each other and from tuning_seed"),
    ],
)
def test_contradictory_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        study(**values)


def known(**changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = study(**changed).model_dump(mode="json")
    return values


def test_a_study_may_grow() -> None:
    before = known(methods=[{"name": "lion", "grid": [1e-3, 2e-3]}], baseline="lion")
    after = study(methods=["adamw", {"name": "lion", "grid": [1e-3, 2e-3, 4e-3]}], seeds=[1, 2, 3], extend=0)
    assert changes(before, after) == []


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({}, {"workload": {"steps": 500}}, ["workload.steps is 400 there and 500 now"]),
        ({}, {"workload": {"schedule": {"final": 0.1}}}, ["workload.schedule.final is 0.0 there and 0.1 now"]),
        ({"seeds": [1, 2, 3]}, {"seeds": [1, 3]}, ["seeds [2] are there and not asked for now"]),
        ({"methods": ["adamw", "lion"]}, {}, ["the method 'lion' is there and not asked for now"]),
        (
            {"methods": [{"name": "lion", "grid": [1e-3, 2e-3]}]},
            {"methods": [{"name": "lion", "grid": [1e-3]}]},
            ["lion: grid is [0.001, 0.002] there and [0.001] now"],
        ),
        (
            {"methods": [{"name": "lion", "options": {"weight_decay": 0.1}}]},
            {"methods": [{"name": "lion", "options": {"weight_decay": 0.2}}]},
            ["lion: options.weight_decay is 0.1 there and 0.2 now"],
        ),
        ({"trials": 4}, {"trials": 8}, ["trials is 4 there and 8 now"]),
        ({"tuning_seed": 7}, {"tuning_seed": 8}, ["tuning_seed is 7 there and 8 now"]),
    ],
)
def test_a_study_may_not_change(before: dict[str, Any], after: dict[str, Any], found: list[str]) -> None:
    assert changes(known(**before), study(**after)) == found


def test_other_versions_are_named() -> None:
    there = {"python": "3.10.1", "torch": "2.13.0", "steepest": "0.1"}
    assert other_versions(there, {**there, "python": "3.12.0"}) == []
    assert other_versions(there, {**there, "torch": "2.14.0"}) == ["torch is 2.13.0 there and 2.14.0 here"]
