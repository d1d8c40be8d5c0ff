"""Routing: first match wins, every parameter in one group, and an error for each way to say what cannot be meant."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from routing_models import shared
from test_roles import Odd
from torch import nn

from steepest import rules
from steepest.routing import HIDDEN, View, default_routing, roles, route

ADAMW = rules.AdamW(lr=3e-4, weight_decay=0.0)
LION = rules.Lion(lr=1e-4)
LIONMUON = rules.LionMuon(lr=1e-3)


def chosen(routing) -> dict[str, rules.Rule]:
    return {entry.name: entry.rule for entry in routing.entries}


def assert_consistent(routing, model) -> None:
    """Groups and entries say the same, and every parameter is there once."""
    names = [n for n, _ in model.named_parameters()]
    assert [e.name for e in routing.entries] == names
    grouped = [(n, p, g["rule"], g["view"]) for g in routing for n, p in g["params"]]
    assert sorted(n for n, *_ in grouped) == sorted(names)
    parameters = dict(model.named_parameters())
    entries = {e.name: e for e in routing.entries}
    for name, parameter, rule, view in grouped:
        assert parameter is parameters[name]
        assert entries[name].rule == rule
        assert str(entries[name].view) == view
        View.parse(view).shapes(parameter.shape)
    pairs = [(g["rule"], g["view"]) for g in routing]
    assert len(set(pairs)) == len(pairs)
    firsts = [min(names.index(n) for n, _ in g["params"]) for g in routing]
    assert firsts == sorted(firsts)
    for g in routing:
        assert set(g) == {"params", "rule", "view"}
        assert [names.index(n) for n, _ in g["params"]] == sorted(names.index(n) for n, _ in g["params"])


# Patterns -------------------------------------------------------------------------------------------------------------


def test_the_first_match_wins():
    model = shared("llama")
    routing = route(
        model,
        [
            ("*embed*|lm_head*", LION),
            (lambda name, p, role: role.kind == "norm", ADAMW),
            ("*.q_proj.*", rules.Muon(lr=2e-3)),
            ("*", LIONMUON),
        ],
    )
    assert_consistent(routing, model)
    found = chosen(routing)
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == LION
    assert found["model.layers.1.self_attn.q_proj.weight"] == rules.Muon(lr=2e-3)
    assert found["model.layers.1.self_attn.k_proj.weight"] == LIONMUON
    assert found["model.norm.weight"] == ADAMW
    whys = {e.name: e.why for e in routing.entries}
    assert whys["lm_head.weight"].endswith("pattern '*embed*|lm_head*'")
    assert whys["model.norm.weight"].endswith("predicate <lambda>")


def test_a_predicate_sees_name_parameter_and_role():
    model = shared("gpt2")
    seen = {}

    def predicate(name, parameter, role):
        seen[name] = (parameter, role)
        return parameter.ndim >= 2 and parameter.shape[0] < 50  # the upstream LionMuon heuristic, at this size

    found = chosen(route(model, [(predicate, LIONMUON), ("*", ADAMW)]))
    assert {n: role for n, (_, role) in seen.items()} == roles(model)
    assert all(p is dict(model.named_parameters())[n] for n, (p, _) in seen.items())
    assert found["transformer.wpe.weight"] == LIONMUON
    assert found["transformer.wte.weight"] == ADAMW


def test_a_tied_parameter_answers_to_each_of_its_names():
    routing = route(shared("gpt2"), [("lm_head*", LION), ("*", ADAMW)])
    assert chosen(routing)["transformer.wte.weight"] == LION
    assert routing.entries[0].why.endswith("pattern 'lm_head*' as lm_head.weight")


def test_globs_match_whole_names_and_case_counts():
    model = nn.ModuleDict({"Attn": nn.Linear(2, 2), "attn": nn.Linear(2, 2), "attn2": nn.Linear(2, 2)})
    found = chosen(route(model, [("attn.weight | Attn.bias", LION), ("[aA]ttn?.*", ADAMW), ("*", rules.Signum())]))
    assert found == {
        "Attn.weight": rules.Signum(),
        "Attn.bias": LION,
        "attn.weight": LION,
        "attn.bias": rules.Signum(),
        "attn2.weight": ADAMW,
        "attn2.bias": ADAMW,
    }


def test_a_pattern_behind_another_one_is_no_error():
    found = chosen(route(shared("llama"), [("*", ADAMW), ("*norm*", LION)]))
    assert set(found.values()) == {ADAMW}


def test_the_view_of_a_rule_goes_before_that_of_the_role():
    model = shared("gpt2")
    heads = rules.LionMuon(lr=1e-3, view="transposed,rows=48,48,48,heads=4")
    routing = route(
        model, [("*c_attn.weight", heads), (lambda n, p, role: role.view.is_matrix, LIONMUON), ("*", ADAMW)]
    )
    assert_consistent(routing, model)
    views = {e.name: str(e.view) for e in routing.entries}
    assert views["transformer.h.0.attn.c_attn.weight"] == "transposed,rows=48,48,48,heads=4"
    assert views["transformer.h.0.mlp.c_fc.weight"] == "transposed"
    assert views["transformer.h.0.mlp.c_fc.bias"] == "element"


def test_equal_rules_share_a_group():
    model = shared("llama")
    groups = route(model, [("*q_proj*", rules.Lion(lr=1e-4)), ("*k_proj*", rules.Lion(lr=1e-4)), ("*", ADAMW)])
    assert [g["rule"] for g in groups] == [ADAMW, rules.Lion(lr=1e-4)]
    assert copy.deepcopy(groups.entries[0]) == groups.entries[0]


def test_the_same_groups_every_time():
    first, second = (default_routing(shared("mixtral"), LIONMUON) for _ in range(2))
    assert first.entries == second.entries
    assert [(g["rule"], g["view"], [n for n, _ in g["params"]]) for g in first] == [
        (g["rule"], g["view"], [n for n, _ in g["params"]]) for g in second
    ]


def test_frozen_parameters_have_a_group_and_are_marked():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight.requires_grad_(False)
    routing = route(model, [("*", ADAMW)])
    assert_consistent(routing, model)
    assert [e.frozen for e in routing.entries] == [True, False, False, False]
    assert routing.entries[0].why.endswith("frozen")


def test_integer_parameters_are_listed_but_in_no_group():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
    for routing in (route(model, [("*", ADAMW)]), default_routing(model, LION)):
        assert [n for g in routing for n, _ in g["params"]] == ["0.bias"]
        assert routing.entries[0].rule is None
        assert "torch.int8 cannot be trained" in routing.entries[0].why
        assert routing.rows()[0]["rule"] == "none"


def test_a_stack_that_nothing_explains_can_be_claimed_by_hand():
    model = Odd()
    routing = route(model, [("inner.weird", rules.LionMuon(view="batch")), ("*", ADAMW)])
    assert {e.name: str(e.view) for e in routing.entries}["inner.weird"] == "batch"
    assert chosen(route(model, [("*", LION)]))["inner.weird"] == LION
    assert chosen(default_routing(model, LION))["inner.weird"].name == "lion"
    for patterns in ([("*.weird", LIONMUON), ("*", ADAMW)], [("*bias", ADAMW), ("*", LIONMUON)]):
        with pytest.raises(ValueError, match=r"'inner.weird' .* fits no known role"):
            route(model, patterns)
    with pytest.raises(ValueError, match=r"'inner.weird' .* fits no known role"):
        default_routing(model, LIONMUON)


# Patterns that cannot be meant ----------------------------------------------------------------------------------------


def test_a_pattern_that_matches_nothing_is_named_with_the_closest_names():
    model = shared("llama")
    with pytest.raises(
        ValueError, match=r"pattern '\*attnn\.q_proj\*' matches no parameter; the closest names are .*q_proj"
    ):
        route(model, [("*attnn.q_proj*", LION), ("*", ADAMW)])
    with pytest.raises(ValueError, match=r"pattern 'model.norm.wieght' matches no parameter; .*'model.norm.weight'"):
        route(model, [("*", ADAMW), ("model.norm.wieght", LION)])
    with pytest.raises(
        ValueError, match=r"pattern '\*zzz\*' matches no parameter; names look like 'model.embed_tokens"
    ):
        route(model, [("*zzz*", LION), ("*", ADAMW)])
    with pytest.raises(ValueError, match=r"pattern '<function .*lambda.*' matches no parameter"):
        route(model, [(lambda name, parameter, role: False, LION), ("*", ADAMW)])


def test_a_parameter_that_no_pattern_claims_is_named():
    with pytest.raises(ValueError, match=r"no pattern matches 'model.norm.weight'; end the list with \('\*', rule\)"):
        route(shared("llama"), [("*layer*|*embed*|lm_head*", LION)])
    with pytest.raises(ValueError, match=r"'model.embed_tokens.weight', .*q_proj.weight', .* and 11 more;"):
        route(shared("llama"), [("*norm*", LION)])


def test_a_vector_under_a_matrix_rule_says_what_to_do():
    with pytest.raises(ValueError) as caught:
        route(shared("llama"), [("*norm*", LIONMUON), ("*", ADAMW)])
    message = str(caught.value)
    assert "'model.layers.0.input_layernorm.weight' of shape (48,)" in message
    assert "lion_muon needs matrices" in message
    assert "rules.AdamW" in message
    assert "earlier pattern" in message
    assert "view=" not in message
    with pytest.raises(ValueError, match=r"A_log' of shape \(96, 4\).* is no matrix.*lion_muon with view='matrix'"):
        route(shared("mamba"), [("*A_log", LIONMUON), ("*", ADAMW)])
    forced = route(shared("mamba"), [("*A_log", rules.LionMuon(view="matrix")), ("*", ADAMW)])
    assert {str(e.view) for e in forced.entries if "A_log" in e.name} == {"matrix"}
    with pytest.raises(ValueError, match="needs matrices"):
        default_routing(shared("llama"), LIONMUON, vectors=rules.Muon())


def test_a_view_that_does_not_fit_names_the_parameter():
    with pytest.raises(
        ValueError, match=r"parameter '0.weight', rule lion_muon: view 'matrix' does not fit .*\(8, 3, 3, 3\)"
    ):
        default_routing(shared("sequential"), rules.LionMuon(view="matrix"))
    with pytest.raises(ValueError, match=r"c_attn.weight', rule muon: view 'transposed,rows=48,48'.*add up to 96"):
        route(shared("gpt2"), [("*c_attn.weight", rules.Muon(view="transposed,rows=48,48")), ("*", ADAMW)])


@pytest.mark.parametrize(
    ("patterns", "complaint"),
    [
        ([], "must be a list of"),
        ("*", "must be a list of"),
        ({"*": ADAMW}, "must be a list of"),
        (["*"], "must be .pattern, rule. pairs"),
        ([("*", ADAMW, 3)], "must be .pattern, rule. pairs"),
        ([(3, ADAMW)], "a pattern is a glob .* got 3"),
        ([("*", rules.AdamW)], r"the rule of pattern '\*' must be a rule such as"),
        ([("*", 1e-3)], r"the rule of pattern '\*' must be a rule such as .* got 0.001"),
    ],
)
def test_what_is_no_list_of_patterns_and_rules_is_refused(patterns, complaint):
    with pytest.raises(TypeError, match=complaint):
        route(shared("sequential"), patterns)


def test_a_model_without_parameters_is_refused():
    for routed in (lambda m: route(m, [("*", ADAMW)]), lambda m: default_routing(m, LION)):
        with pytest.raises(ValueError, match="ReLU has no parameters"):
            routed(nn.ReLU())


# By role --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "vit", "resnet", "mamba", "lstm", "sequential"])
def test_a_matrix_rule_takes_the_hidden_matrices_and_adamw_the_rest(name):
    model = shared(name)
    routing = default_routing(model, LIONMUON)
    assert_consistent(routing, model)
    for entry in routing.entries:
        if entry.role.kind in HIDDEN:
            assert entry.rule == LIONMUON
            assert entry.view == entry.role.view
            assert entry.why.endswith("hidden matrix")
        else:
            plain = entry.role.kind in ("norm", "bias", "vector")
            assert entry.rule == rules.AdamW(lr=1e-3, weight_decay=0.0 if plain else LIONMUON.weight_decay)
            assert str(entry.view) == "element"
            assert ("no decay" in entry.why) == plain


def test_an_element_rule_takes_everything():
    model = shared("mixtral")
    routing = default_routing(model, LION)
    assert_consistent(routing, model)
    assert {e.rule.weight_decay for e in routing.entries if e.role.kind == "norm"} == {0.0}
    assert {e.rule for e in routing.entries if e.role.kind != "norm"} == {LION}
    assert len(routing) == 2
    assert len(default_routing(model, LION, decay_vectors=True)) == 1
    assert len(default_routing(model, rules.Lion(weight_decay=0.0))) == 1


def test_decay_vectors_keeps_the_decay():
    for entry in default_routing(shared("gpt2"), LIONMUON, decay_vectors=True).entries:
        assert entry.rule.weight_decay == LIONMUON.weight_decay
        assert "no decay" not in entry.why


def test_keywords_override_by_role():
    model = shared("llama")
    tables, top, plain, rest = rules.Lion(lr=1e-5), rules.Signum(lr=1e-6), rules.Lion(lr=1e-7), rules.AdamW(lr=1e-8)
    found = chosen(default_routing(model, LIONMUON, embeddings=tables))
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == tables
    assert found["model.norm.weight"] == rules.AdamW(lr=1e-3, weight_decay=0.0)
    found = chosen(default_routing(model, LIONMUON, embeddings=tables, head=top, vectors=plain, rest=rest))
    assert found["model.embed_tokens.weight"] == tables
    assert found["lm_head.weight"] == top
    assert found["model.norm.weight"] == plain  # as given, decay and all
    assert found["model.layers.0.mlp.up_proj.weight"] == LIONMUON
    found = chosen(default_routing(shared("mixtral"), LIONMUON, rest=rest))
    assert found["model.layers.0.mlp.gate.weight"] == rest
    assert found["model.norm.weight"] == rules.AdamW(lr=1e-8, weight_decay=0.0)
    found = chosen(default_routing(shared("vit"), LIONMUON, embeddings=tables))
    assert found["vit.embeddings.position_embeddings"] == tables
    assert found["vit.embeddings.cls_token"] == rules.AdamW(lr=1e-3, weight_decay=0.0)


def test_keywords_override_an_element_rule_too():
    found = chosen(default_routing(shared("gpt2"), LION, embeddings=ADAMW))
    assert found["transformer.wte.weight"] == found["transformer.wpe.weight"] == ADAMW
    assert found["transformer.h.0.mlp.c_fc.weight"] == LION
    found = chosen(default_routing(shared("gpt2"), LION, rest=rules.AdamW()))
    assert found["transformer.wte.weight"] == rules.AdamW()
    assert found["transformer.h.0.mlp.c_fc.weight"] == LION


def test_embeddings_can_be_matrices():
    routing = default_routing(shared("gpt2"), LIONMUON, embeddings=rules.LionMuon(lr=1e-4))
    assert str(routing.entries[0].view) == "matrix"
    assert chosen(routing)["transformer.wpe.weight"] == rules.LionMuon(lr=1e-4)


def test_fused_weights_are_split_or_joined():
    def views(fused):
        return {e.name: str(e.view) for e in default_routing(shared("phi3"), LIONMUON, fused=fused).entries}

    assert views("split")["model.layers.0.self_attn.qkv_proj.weight"] == "rows=48,24,24"
    assert views("split")["model.layers.0.mlp.gate_up_proj.weight"] == "rows=64,64"
    assert views("joined")["model.layers.0.self_attn.qkv_proj.weight"] == "matrix"
    assert views("joined")["model.layers.0.mlp.gate_up_proj.weight"] == "matrix"
    assert views("joined")["model.layers.0.self_attn.o_proj.weight"] == "matrix"
    joined = default_routing(shared("gpt2"), LIONMUON, fused="joined")
    assert {str(e.view) for e in joined.entries if "c_attn.weight" in e.name} == {"transposed"}


def test_a_rule_of_sums_sees_no_matrices():
    """Which axis its sums are over is its own option; it takes every parameter, unless it says otherwise."""
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Sums(rules.Lion):
        name = "sums"
        needs = "sums"

    routing = default_routing(shared("gpt2"), Sums(), embeddings=Sums(lr=1.0), vectors=Sums(lr=2.0))
    assert {str(e.view) for e in routing.entries} == {"element"}
    assert {e.rule.name for e in routing.entries} == {"sums"}


# Keywords that cannot be meant ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "complaint"),
    [
        (
            "resnet",
            {"embeddings": LION},
            "embeddings= matches no parameter of ResNetForImageClassification; leave it out",
        ),
        (
            "gpt2",
            {"head": LION},
            "head= matches no .*: its output head is tied to 'transformer.wte.weight', use embeddings=",
        ),
        ("lstm", {"head": LION}, "head= matches no parameter of LSTM; leave it out"),
        ("gpt2", {"fused": "both"}, "fused must be 'split' or 'joined', got 'both'"),
    ],
)
def test_a_keyword_without_parameters_is_named(model, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        default_routing(shared(model), LIONMUON, **options)


def test_vectors_without_vectors_is_an_error_and_rest_without_a_rest_is_not():
    model = nn.Linear(3, 3, bias=False)
    with pytest.raises(ValueError, match="vectors= matches no parameter of Linear"):
        default_routing(model, LIONMUON, vectors=LION)
    assert chosen(default_routing(model, LIONMUON, rest=ADAMW)) == {"weight": LIONMUON}


def test_a_matrix_rule_without_matrices_is_refused():
    with pytest.raises(
        ValueError, match="Embedding has no hidden matrix for lion_muon, only embedding; use a rule that"
    ):
        default_routing(nn.Embedding(4, 3), LIONMUON)


@pytest.mark.parametrize("option", ["embeddings", "head", "vectors", "rest"])
def test_a_keyword_that_is_no_rule_is_refused(option):
    with pytest.raises(TypeError, match=f"{option} must be a rule such as .* got 0.001"):
        default_routing(shared("llama"), LIONMUON, **{option: 1e-3})
    with pytest.raises(TypeError, match=r"rule must be a rule such as .* got None"):
        default_routing(shared("llama"), None)


# The scale comes from the view ----------------------------------------------------------------------------------------


def test_the_expected_step_is_that_of_the_matrices_of_the_view():
    rule = rules.Muon(lr=1.0, scale="keller")
    rows = {r["name"]: r for r in default_routing(shared("gpt2"), rule).rows()}
    # c_attn is three (48, 48) matrices; c_fc one of (192, 48), stored the other way; c_proj one of (48, 192).
    assert rows["transformer.h.0.attn.c_attn.weight"]["rms_step"] == pytest.approx(rule.expected_rms(48, 48))
    assert rows["transformer.h.0.mlp.c_fc.weight"]["rms_step"] == pytest.approx(rule.expected_rms(192, 48))
    assert rows["transformer.h.0.mlp.c_proj.weight"]["rms_step"] == pytest.approx(rule.expected_rms(48, 192))
    assert rule.expected_rms(192, 48) != pytest.approx(rule.expected_rms(48, 192))
    joined = {r["name"]: r for r in default_routing(shared("gpt2"), rule, fused="joined").rows()}
    assert joined["transformer.h.0.attn.c_attn.weight"]["rms_step"] == pytest.approx(rule.expected_rms(144, 48))


def test_unequal_sections_average_their_squares():
    rule = rules.Muon(lr=1.0, scale="none")
    rows = {r["name"]: r for r in default_routing(shared("phi3"), rule).rows()}
    q, k = rule.expected_rms(48, 48), rule.expected_rms(24, 48)
    expected = math.sqrt((48 * q**2 + 2 * 24 * k**2) / 96)
    assert rows["model.layers.0.self_attn.qkv_proj.weight"]["rms_step"] == pytest.approx(expected)
