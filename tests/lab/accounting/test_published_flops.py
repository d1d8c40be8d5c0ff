from __future__ import annotations

import json

import pytest

from steepest.lab import models
from steepest.lab.accounting.published import RUNS, newton_schulz
from steepest.lab.cli import main

# As printed: millions of parameters, FLOPs of the model and of a spectral step, totals by period.
PRINTED = {
    "124M": ("123.96", "1.2186e+13", "1.5220e+12", {None: "7.799e+17", 1: "8.773e+17", 2: "8.286e+17", 5: "7.994e+17"}),
    "355M": ("354.55", "1.1153e+15", "7.2155e+12", {None: "1.7455e+19", 1: "1.7568e+19", 2: "1.7511e+19"}),
    "720M": ("708.05", "4.3155e+15", "2.8862e+13", {None: "1.5104e+19", 1: "1.5205e+19", 2: "1.5155e+19"}),
}
LAST = {("124M", 20): "7.848e+17", ("355M", 5): "1.7477e+19", ("720M", 5): "1.5124e+19"}
SHARES = {"124M": "12.5", "355M": "0.65", "720M": "0.67"}


@pytest.mark.parametrize("size", RUNS)
def test_totals_to_the_printed_digits(size: str) -> None:
    run, (parameters, model, spectral, totals) = RUNS[size], PRINTED[size]
    assert f"{run.parameters / 1e6:.2f}" == parameters
    assert f"{run.model:.4e}" == model
    assert f"{run.spectral:.4e}" == spectral
    decimals = len(SHARES[size].partition(".")[2])
    assert f"{100 * run.spectral / run.model:.{decimals}f}" == SHARES[size]
    for period, printed in [*totals.items(), *((p, v) for (s, p), v in LAST.items() if s == size)]:
        digits = len(printed.partition("e")[0]) - 2
        assert f"{run.total(period):.{digits}e}" == printed, period


def test_the_same_formula_on_llama_blocks() -> None:
    # "its true cost is 1.576e12": queries, keys and values as one matrix, an inner width of 2048
    d, inner = 768, 2048
    block = [(d, 3 * d), (d, d), (d, inner), (d, inner), (inner, d)]
    assert f"{12 * newton_schulz(block):.3e}" == "1.576e+12"


def test_a_sign_step_is_one_operation_an_element() -> None:
    run = RUNS["124M"]
    assert run.sign == 12 * 12 * 768**2
    assert run.total(10_000_000) / run.total(None) - 1 == pytest.approx(7e-6, rel=0.05)  # "Lion" of their plots


@pytest.mark.parametrize("size", RUNS)
def test_presets_are_their_models(size: str) -> None:
    run = RUNS[size]
    described = models.describe(run.preset)
    assert (described["layers"], described["width"]) == (run.layers, run.width)
    norms = (2 * run.layers + 1) * run.width
    assert models.configuration(run.preset).vocab_size == run.vocabulary
    positions = models.configuration(run.preset).n_positions
    assert described["parameters"] - norms == run.parameters + (positions - run.length) * run.width


def test_command_prints_theirs_and_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "flops", "--published", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert cells["124M"]["total, P = 2"] == "8.2860e+17"
    # Attention scores are what they leave out; positions are what we leave out.
    ours, run = float(cells["124M"]["ours: model, a step"]), RUNS["124M"]
    tokens = run.length * run.batch
    scores = 12 * run.layers * run.length * run.width * tokens
    assert ours == pytest.approx(run.model + scores - 6 * run.length * run.width * tokens, rel=1e-4)
    assert float(cells["124M"]["ours: Muon, a step"]) == pytest.approx(run.spectral, rel=0.2)
