from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from small_runs import tiny

from steepest.lab import methods
from steepest.lab.cli import options
from steepest.lab.config import (
    FLAGS,
    StudyConfig,
    TrainConfig,
    command_line,
    load_file,
    override,
    run_id,
    validate,
)
from steepest.lab.errors import UserError
from steepest.lab.workloads import resolve

SHA = "0" * 64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workload": {"stepss": 3}}, "unknown key 'workload.stepss'. Did you mean 'steps'"),
        ({"sead": 3}, "unknown key 'sead'. Did you mean 'seed'"),
        ({"workload": {"schedule": {"wramup": 3}}}, "unknown key 'workload.schedule.wramup'. Did you mean 'warmup'"),
        ({"workload": {"steps": 0}}, "workload.steps: .*greater than or equal to 1, got 0"),
        ({"workload": {"schedule": {"kind": "cos"}}}, "unknown schedule 'cos'. Did you mean"),
        ({"workload": {"precision": "fp16"}}, "workload.precision: .*'bf16'.*got 'fp16'"),
        ({"method": {"lr": -1}}, "method.lr: .*got -1"),
        ({"method": {"lr": math.nan}}, "method.lr: .*finite"),
        ({"workload": {"batch_size": 6}, "micro_batch": 4}, "micro_batch must divide batch_size, got 4 and 6"),
    ],
)
def test_every_fault_names_the_key_the_value_and_the_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(TrainConfig, values)


def test_the_tuning_seed_cannot_be_a_final_seed() -> None:
    with pytest.raises(UserError, match="biased"):
        validate(StudyConfig, {"methods": ["adamw"], "seeds": [0, 1]})


def test_overrides_are_typed_and_do_not_touch_their_input() -> None:
    given = {"workload": {"steps": 5}}
    changed = override(
        given, ["workload.schedule.warmup=1e-1", "method.options.betas=[0.9, 0.99]", "workload.text=null"]
    )
    assert given == {"workload": {"steps": 5}}
    assert changed["workload"] == {"steps": 5, "schedule": {"warmup": 0.1}, "text": None}
    assert changed["method"]["options"]["betas"] == [0.9, 0.99]
    with pytest.raises(UserError, match="an override is key=value"):
        override({}, ["steps"])
    with pytest.raises(UserError, match="'workload' is 3, not a group"):
        override({"workload": 3}, ["workload.steps=1"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "method: {name: lion, lr: 1e-3}\n"),
        ("a.toml", '[method]\nname = "lion"\nlr = 1e-3\n'),
        ("a.json", '{"method": {"name": "lion", "lr": 1e-3}}'),
    ],
)
def test_files_of_all_kinds_give_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    config = validate(TrainConfig, load_file(tmp_path / name))
    assert (config.method.name, config.method.lr) == ("lion", 1e-3)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1")
    (tmp_path / "b.toml").write_text("a = ")
    (tmp_path / "c.json").write_text("[1]")
    (tmp_path / "d.ini").write_text("")
    for name, message in (("a.yaml", "cannot be read"), ("b.toml", "cannot be read"), ("c.json", "keys and values")):
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            load_file(tmp_path / name)
    with pytest.raises(UserError, match="unknown kind of file"):
        load_file(tmp_path / "d.ini")
    with pytest.raises(UserError, match="no configuration file"):
        load_file(tmp_path / "e.yaml")


def test_flags_win_over_overrides_over_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("workload: {steps: 2, batch_size: 2, clip: 2.0}\n")
    values = options.gather(
        {"workload": {"steps": 1, "data": "x"}},
        path,
        ["workload.batch_size=3", "workload.clip=3"],
        {"workload.clip": 0.0},
    )
    assert values["workload"] == {"steps": 2, "batch_size": 3, "clip": None, "data": "x"}


SEMANTIC: dict[str, Any] = {
    "workload__steps": 13, "workload__batch_size": 8, "workload__sequence_length": 8, "workload__clip": None,
    "workload__precision": "bf16", "workload__model": "tiny", "workload__schedule": {"final": 0.1},
    "workload__evaluation": {"tokens": 512, "batch_size": 4}, "method__lr": 2e-2, "seed": 1,
    "method__options": {"weight_decay": 0.2},
}  # fmt: skip
CARRYING_OUT: dict[str, Any] = {
    "purpose": "tune", "micro_batch": 2, "checkpoint_every": 3, "log_every": 2, "threads": 2, "keep_checkpoint": False,
    "tensorboard": True, "cache": "/elsewhere", "method__label": "mine",
    "workload__evaluation": {"tokens": 256, "batch_size": 4, "every": 5},
    "method__options": {"weight_decay": 0.1},
}  # fmt: skip


def test_the_hash_sees_what_decides_the_result_and_nothing_else(tmp_path: Path) -> None:
    def identity(**changes: Any) -> str:
        return run_id(resolve(tiny(tmp_path, **changes)), SHA)

    assert len({identity(), *(identity(**{key: value}) for key, value in SEMANTIC.items())}) == len(SEMANTIC) + 1
    assert {identity(**{key: value}) for key, value in CARRYING_OUT.items()} == {identity()}
    assert run_id(resolve(tiny(tmp_path)), "1" * 64) != identity()
    assert identity().startswith("adamw-lr0.01-s0-")


def test_infinite_options_survive_the_way_through_json() -> None:
    config = validate(TrainConfig, {"method": {"name": "lionmuon", "options": {"period": math.inf}}})
    run_id(resolve(config), SHA)
    command = command_line(resolve(config), methods.find("lionmuon").options)
    assert "method.options.period=inf" in command
    assert validate(TrainConfig, override({}, ["method.options.period=inf"])).method.options["period"] == math.inf


@pytest.mark.parametrize("changes", [{}, *({key: value} for key, value in SEMANTIC.items())], ids=str)
def test_the_command_of_a_run_repeats_it(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve(tiny(tmp_path, **changes))
    words = shlex.split(command_line(config, methods.find("adamw").options))
    assert words[:2] == ["steepest", "train"]
    flags, overrides = {}, []
    for flag, value in zip(words[2::2], words[3::2], strict=True):
        if flag == "-o":
            overrides.append(value)
        else:
            key = next(key for key, name in FLAGS.items() if name == flag)
            flags[key] = json.loads(value) if value[0].isdigit() else value
    again = resolve(validate(TrainConfig, options.gather({}, None, overrides, flags)))
    assert run_id(again, SHA) == run_id(config, SHA)
