"""The routing report: one plain row for each parameter, and a text that folds layers that are alike."""

from __future__ import annotations

import json

import pytest
import torch
from routing_models import shared
from torch import nn

from steepest import rules
from steepest.routing import View, default_routing, report, route

FIELDS = ["name", "shape", "view", "role", "rule", "rms_step", "state_bytes", "why"]


def test_rows_are_plain_and_complete():
    model = shared("convnext")
    rows = default_routing(model, rules.LionMuon()).rows()
    assert [r["name"] for r in rows] == [n for n, _ in model.named_parameters()]
    assert all(list(r) == FIELDS for r in rows)
    assert json.loads(json.dumps(rows)) == rows


def test_state_bytes_are_those_of_the_declared_buffers():
    rows = {r["name"]: r for r in default_routing(shared("gpt2"), rules.LionMuon(state_dtype="bfloat16")).rows()}
    assert rows["transformer.h.0.mlp.c_fc.weight"]["state_bytes"] == 48 * 192 * 2
    assert rows["transformer.wte.weight"]["state_bytes"] == 64 * 48 * 4 * 2  # AdamW: two buffers of float32
    half = nn.Linear(4, 4).to(torch.bfloat16)
    assert [r["state_bytes"] for r in default_routing(half, rules.Lion()).rows()] == [32, 8]


def test_steps_of_element_rules_are_their_rate():
    rows = default_routing(shared("gpt2"), rules.Lion(lr=3e-4)).rows()
    assert {r["rms_step"] for r in rows} == {3e-4}
    scalar = report.row(
        name="s", shape=(), dtype=torch.float32, view=View(element=True), role="vector", rule=rules.Lion(lr=1.0), why=""
    )
    assert scalar["rms_step"] == 1.0
    assert scalar["shape"] == []
    empty = report.row(
        name="e", shape=(0, 4), dtype=torch.float32, view="matrix", role="linear", rule=rules.Muon(), why=""
    )
    assert empty["rms_step"] == 0.0


def test_a_method_that_cannot_say_its_step_has_none():
    class Silent(rules.Lion):
        def expected_rms(self, m, n):
            return float("nan")

    routing = default_routing(shared("gpt2"), Silent())
    assert {r["rms_step"] for r in routing.rows()} == {None}
    assert "nan" not in routing.report()
    assert "{0-1}" in routing.report()


def test_layers_that_are_alike_are_one_line():
    text = default_routing(shared("gpt2"), rules.LionMuon(lr=1e-3)).report()
    lines = text.splitlines()
    folded = [line for line in lines if "{0-1}" in line]
    assert len(folded) == 12
    (c_attn,) = [line for line in lines if "c_attn.weight" in line]
    assert c_attn.split()[:5] == [
        "transformer.h.{0-1}.attn.c_attn.weight",
        "x2",
        "48x144",
        "transposed,rows=48,48,48",
        "attention",
    ]
    assert "lion_muon" in c_attn
    assert f"{2 * 48 * 144 * 4 / 1024:.1f} KiB" in c_attn
    assert lines[0].split() == ["name", "shape", "view", "role", "rule", "RMS", "step", "state", "why"]
    assert len(lines) == 1 + 16 + 2


def test_columns_are_aligned():
    lines = default_routing(shared("mixtral"), rules.LionMuon()).report().splitlines()
    start = lines[0].index("view")
    for line in lines[1:-2]:
        assert line[start - 1] == " "
        assert line[start] != " "


def test_totals_add_up():
    model = shared("mixtral")
    routing = default_routing(model, rules.LionMuon())
    last = routing.report().splitlines()[-1]
    count = sum(p.numel() for p in model.parameters())
    hidden = sum(p.numel() for g in routing if g["rule"].name == "lion_muon" for _, p in g["params"])
    assert last.startswith(f"{count:,} parameters in {len(routing.entries)} tensors, state ")
    assert f"lion_muon {100 * hidden / count:.1f} %" in last
    assert f"adamw {100 * (1 - hidden / count):.1f} %" in last


def test_only_what_is_alike_is_folded():
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(5)])})
    routing = route(model, [("layers.1.*", rules.Lion(lr=1.0)), ("*", rules.Lion(lr=2.0))])
    names = [line.split()[0] for line in routing.report().splitlines()[1:3]]
    assert names == ["layers.{0,2-4}.weight", "layers.1.weight"]


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (["a.0.b"], "a.0.b"),
        (["a.0.b", "a.1.b", "a.2.b"], "a.{0-2}.b"),
        (["a.9.b", "a.10.b"], "a.{9-10}.b"),
        (["a.0.b.1", "a.0.b.2", "a.3.b.1", "a.3.b.2"], "a.{0,3}.b.{1-2}"),
        (["fc1.0", "fc1.1"], "fc1.{0-1}"),
    ],
)
def test_folded_names(names, folded):
    rows = [
        report.row(name=n, shape=(2,), dtype=torch.float32, view="element", role="bias", rule=rules.Lion(), why="bias")
        for n in names
    ]
    line = report.text(rows).splitlines()[1]
    assert line.split()[0] == folded
    assert (f"x{len(names)}" in line.split()) == (len(names) > 1)
