"""Configuration: what a run is, checked before anything starts, and the hash that names it.

A file (YAML, TOML or JSON) and dotted overrides give the same nested keys as the classes below::

    workload: {model: mini, data: news-wiki, tokenizer: bpe-4096, steps: 2000, schedule: {kind: wsd, decay: 0.3}}
    method: {name: lionmuon, lr: 1e-2, options: {period: 5}}
    seed: 1
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from steepest.lab import presets
from steepest.lab.errors import UserError, closest
from steepest.lab.schedules import Schedule

Precision = Literal["auto", "fp32", "bf16"]
PARTS = 10  # evaluations and checkpoints a run, unless configured
_Model = TypeVar("_Model", bound="Strict")


class Strict(BaseModel):
    """Base of all configuration: unknown keys are errors, values never change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """The schema with the meaning of each key from the docstring."""
        made: dict[str, Any] = handler.resolve_ref_schema(handler(schema))
        about, _, args = inspect.cleandoc(cls.__doc__ or "").partition("\n\nArgs:\n")
        meanings = {match[1]: " ".join(match[2].split()) for match in _ARGUMENT.finditer(inspect.cleandoc(args))}
        for name, key in made.get("properties", {}).items():
            if name in meanings:
                key["description"] = meanings[name]
        return {**made, "description": about}


# An argument in the docstring: its name, and what follows up to the next that begins at the margin.
_ARGUMENT = re.compile(r"^(\w+): (.*(?:\n(?: +.*)?$)*)", re.MULTILINE)


class ScheduleConfig(Strict):
    """The learning-rate schedule; see `steepest.lab.schedules.Schedule` for the formula and the defaults' source.

    Args:
        kind: "cosine", "linear", "wsd" (stable at the peak, then linear) or "constant".
        warmup: steps if >= 1, else a fraction of the run.
        final: the floor as a fraction of the peak.
        start: the factor at the first step of the warm-up.
        decay: length of the decay of "wsd"; steps if >= 1, else a fraction of the run.
    """

    kind: str = "cosine"
    warmup: float = Field(default=0.1, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    start: float = Field(default=0.01, ge=0, le=1)
    decay: float = Field(default=0.2, ge=0)

    def build(self, steps: int) -> Schedule:
        """Return the schedule of a run of `steps` steps, or raise a `UserError` that names the bad value."""
        return Schedule(steps=steps, **self.model_dump())


class EvaluationConfig(Strict):
    """Evaluation on the same validation tokens every time: sum of token losses over their count.

    Args:
        tokens: validation tokens, the first ones of the held-out part.
        batch_size: sequences per forward pass.
        every: steps between evaluations; 0 = ten times a run. How often is no part of a run's identity.
    """

    tokens: int = Field(default=65_536, ge=1)
    batch_size: int = Field(default=16, ge=1)
    every: int = Field(default=0, ge=0)


class Workload(Strict):
    """What is learned, on what, for how long: everything that two compared methods share.

    Args:
        model: a preset ("tiny", "mini-gpt2", "llama-60m", ...), the path of a Hugging Face config, or a mapping
            ``{preset: tiny, hidden_size: 96}`` that changes a preset.
        data: a corpus ("news-wiki", "synthetic", "fineweb", ...); ignored when `text` is given.
        text: the user's own text file or folder.
        tokenizer: "bytes", "bpe-4096", ...
        max_bytes: read at most so many bytes of the corpus.
        batch_size: sequences per step (the global batch). Default 16.
        sequence_length: tokens per sequence. Default 128.
        steps: optimizer steps. Default 400.
        clip: global gradient norm before every step, None for no clipping. Default 0.5 (LionMuon 124M and 355M).
        precision: "fp32", "bf16" (autocast; weights stay fp32), or "auto": bf16 where it is measurably faster.
    """

    model: str | dict[str, Any] = "tiny"
    data: str = "news-wiki"
    text: str | None = None
    tokenizer: str = "bytes"
    max_bytes: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    sequence_length: int = Field(default=128, ge=1)
    steps: int = Field(default=400, ge=1)
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float | None = Field(default=0.5, gt=0)
    precision: Precision = "auto"
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _schedule_fits(self) -> Workload:
        self.schedule.build(self.steps)
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted per step."""
        return self.batch_size * self.sequence_length

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations; there is one after the last step, too."""
        return self.evaluation.every or max(self.steps // PARTS, 1)


class MethodConfig(Strict):
    """An optimizer by its name in `steepest optimizers`.

    Args:
        name: as in `steepest optimizers`.
        label: how tables call this variant; it is no part of a run's identity.
        preset: tuned settings of a paper, as in `steepest optimizers show NAME` ("130M"): its rate and options.
        lr: the learning rate. None: that of the preset, or the method's default.
        options: of the method, by name.
    """

    name: str = "adamw"
    label: str | None = None
    preset: str | None = Field(default=None, exclude=True)  # what it stands for is written out in the others
    lr: float | None = Field(default=None, ge=0)
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        return _with_preset(values, lambda rate: {"lr": rate} if values.get("lr") is None else {})

    @field_validator("options", mode="before")
    @classmethod
    def _numbers(cls, options: Any) -> Any:
        return {key: _number(value) for key, value in options.items()} if isinstance(options, Mapping) else options


def _with_preset(values: Any, rate_as: Callable[[float], dict[str, Any]]) -> Any:
    """A method as it is written, with the options of its preset, and its rate under the key that takes it."""
    if not isinstance(values, Mapping) or values.get("preset") is None:
        return values
    name, given, tuned = str(values.get("name", "adamw")), values.get("options") or {}, values.get("space") or {}
    rate, options = presets.find(name, str(values["preset"]))
    for key, value in given.items():
        if key in options and canonical(_number(value)) != canonical(options[key]):
            raise UserError(
                f"{name}: options.{key} is {value}, and {options[key]} in the preset {values['preset']}; leave one out."
            )
    options = {key: value for key, value in options.items() if key not in tuned}
    return {**values, "options": {**options, **given}, **rate_as(rate)}


class TrainConfig(Strict):
    """One run. Fields below `seed` decide how it is carried out, not what it computes, and stay out of its hash.

    Args:
        seed: of the initial weights and of the order of the data.
        micro_batch: sequences per forward-backward pass; gradients accumulate to `batch_size`. None: all at once.
        checkpoint_every: steps between checkpoints; 0 = ten times a run.
        log_every: steps per line of metrics.jsonl (the loss in it is their mean); 0 = at most 1,000 lines a run.
        diagnostics_every: steps between measurements of what a step does (`steepest.lab.diagnostics`); 0 for none.
        threads: torch threads; None leaves torch's choice.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
        cache: folder of prepared data; None for the default.
        keep_checkpoint: keep the last checkpoint of a finished run.
        tensorboard: write what is logged as events for TensorBoard too, into `events` in the run's folder.
    """

    workload: Workload = Workload()
    method: MethodConfig = MethodConfig()
    seed: int = Field(default=0, ge=0)
    purpose: Literal["tune", "final"] = "final"
    micro_batch: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=0, ge=0)
    log_every: int = Field(default=0, ge=0)
    diagnostics_every: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    device: str = "auto"
    cache: str | None = None
    keep_checkpoint: bool = True
    tensorboard: bool = False

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> TrainConfig:
        if self.micro_batch is not None and self.workload.batch_size % self.micro_batch:
            raise UserError(
                f"micro_batch must divide batch_size, got {self.micro_batch} and {self.workload.batch_size}."
            )
        return self


class Range(Strict):
    """An axis of a sampled search: values from `low` to `high`, evenly on a log scale unless `log` is false."""

    low: float
    high: float
    log: bool = True

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        return {key: _number(value) for key, value in values.items()} if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            hint = "low must be below high" if self.low >= self.high else "a log scale needs low > 0 (or log: false)"
            raise UserError(f"a range of {self.low:g} to {self.high:g} is empty or has no logarithm: {hint}.")
        return self


Axis = Range | tuple[Any, ...]
Search = Literal["grid", "random", "quasi-random", "tpe"]


class StudyMethod(Strict):
    """One row of a study: a method, its options, and what is tuned.

    Args:
        name: as in `steepest optimizers`.
        label: how tables call this variant; needed where one method is in a study twice.
        preset: tuned settings of a paper, as in `steepest optimizers show NAME` ("130M"): its options, and its rate as
            the grid if none is given.
        options: fixed options.
        grid: learning rates to try; short for ``space: {lr: [...]}``. None: the method's own.
        space: axes by name, "lr" or an option: a list of values or, for a sampled search, ``{low, high, log}``.
    """

    name: str
    label: str | None = None
    preset: str | None = Field(default=None, exclude=True)
    options: dict[str, Any] = {}
    grid: tuple[float, ...] | None = None
    space: dict[str, Axis] = {}

    _numbers = field_validator("options", mode="before")(MethodConfig._numbers.__func__)  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        def grid(rate: float) -> dict[str, Any]:
            tuned = values.get("grid") is not None or "lr" in (values.get("space") or {})
            return {} if tuned else {"grid": (rate,)}

        return _with_preset(values, grid)

    @field_validator("grid")
    @classmethod
    def _sorted(cls, grid: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if grid is not None and (not grid or min(grid) <= 0 or len(set(grid)) < len(grid)):
            raise UserError(f"a grid of learning rates needs different positive values, got {list(grid)}.")
        return None if grid is None else tuple(sorted(grid))

    @field_validator("space", mode="before")
    @classmethod
    def _axes(cls, space: Any) -> Any:
        if not isinstance(space, Mapping):
            return space
        return {name: _number(axis) if isinstance(axis, list) else axis for name, axis in space.items()}

    @model_validator(mode="after")
    def _consistent(self) -> StudyMethod:
        if self.grid is not None and "lr" in self.space:
            raise UserError(f"{self.name}: give the learning rates as grid or as space.lr, not both.")
        for name, axis in self.space.items():
            if name in self.options:
                raise UserError(f"{self.name}: {name} is fixed in options and tuned in space; remove one of them.")
            if not isinstance(axis, Range) and (not axis or len({canonical(value) for value in axis}) < len(axis)):
                raise UserError(f"{self.name}: space.{name} needs different values, got {plain(list(axis))}.")
        return self


class StudyConfig(Strict):
    """A study: every method on the same workload, tuned on one seed, its winner run again on fresh seeds.

    Args:
        name: of the study and of its folder.
        methods: names, or mappings with "name", "label", "options", "grid" and "space".
        baseline: the method whose loss the others are compared with.
        search: "grid" tries every combination of the listed values; "random", "quasi-random" (Sobol) and "tpe" draw
            `trials` points from the ranges (Optuna).
        trials: points per method, the same for all. With a grid: a method without listed values gets so many learning
            rates, a factor of 2 apart, around its default; None takes the method's own grid.
        tuning_seed: the seed of the tuning runs; they never enter the final numbers.
        seeds: the fresh seeds of the final runs.
        extend: how many times a grid may grow along an axis when the best value lies on its edge; a best value that is
            still on the edge after that leaves the row open.
        diagnostics_every: steps between measurements of what a step does; 0 for none. No part of a run's identity.
        device: "auto", "cpu", "cuda", ...
        cache: folder of prepared data; None for the default.
        tensorboard: write what each run logs as events for TensorBoard too. No part of a run's identity.
    """

    name: str = "compare"
    workload: Workload = Workload()
    methods: tuple[StudyMethod, ...] = ()
    baseline: str = "adamw"
    search: Search = "grid"
    trials: int | None = Field(default=None, ge=1)
    tuning_seed: int = Field(default=0, ge=0)
    seeds: tuple[int, ...] = (1, 2)
    extend: int = Field(default=3, ge=0)
    diagnostics_every: int = Field(default=0, ge=0)
    device: str = "auto"
    cache: str | None = None
    tensorboard: bool = False

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str) -> str:
        if (
            not name.strip()
            or name in (".", "..")
            or any(letter in "/\\" or not letter.isprintable() for letter in name)
        ):
            raise UserError(
                f"the name of a study is the name of its folder, without / or \\ and on one line; got {name!r}."
            )
        return name

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, methods: Any) -> Any:
        if isinstance(methods, str):
            methods = [name.strip() for name in methods.split(",")]
        return [{"name": method} if isinstance(method, str) else method for method in methods]

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if self.tuning_seed in self.seeds or len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise UserError(
                f"seeds must be different from each other and from tuning_seed, got seeds {list(self.seeds)} and "
                f"tuning_seed {self.tuning_seed}: the run that chose a learning rate is biased in its favour."
            )
        labels = [method.label or method.name for method in self.methods]
        if len(set(labels)) < len(labels):
            raise UserError(f"two methods share a label: {labels}. Give the variants different labels.")
        if self.search != "grid" and self.trials is None:
            raise UserError(f"search: {self.search} needs the number of trials per method, for example trials: 16.")
        for method in self.methods:
            for name, axis in method.space.items():
                if self.search == "grid" and isinstance(axis, Range):
                    raise UserError(
                        f"{method.name}: space.{name} is a range, and a grid needs a list of values. List them, or "
                        "set search to random, quasi-random or tpe."
                    )
        return self


def plain(value: Any) -> Any:
    """Return the value as JSON can say it: tuples as lists, infinity as "inf" (which reads back as infinity)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal strings."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def hash8(value: Any) -> str:
    """Return the first 8 hex digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:8]


def identity(config: TrainConfig, data_sha256: str) -> dict[str, Any]:
    """Return what makes a run that run: workload, method, seed and the data's own hash; not how it is carried out."""
    workload = config.workload.model_dump(exclude={"evaluation": {"every"}, "text": True, "max_bytes": True})
    return {
        "workload": workload,
        "method": plain(config.method.model_dump(exclude={"label"})),
        "seed": config.seed,
        "data_sha256": data_sha256,
    }


def run_id(config: TrainConfig, data_sha256: str) -> str:
    """Return "<method>-lr<lr>-s<seed>-<hash8>"."""
    rate = "default" if config.method.lr is None else f"{config.method.lr:g}"
    return f"{config.method.name}-lr{rate}-s{config.seed}-{hash8(identity(config, data_sha256))}"


# The flags of `steepest train` for keys of its configuration; every other key is set with -o.
FLAGS = {
    "workload.model": "--model",
    "workload.data": "--data",
    "workload.text": "--text",
    "workload.tokenizer": "--tokenizer",
    "workload.batch_size": "--batch-size",
    "workload.sequence_length": "--sequence-length",
    "workload.steps": "--steps",
    "workload.schedule.kind": "--schedule",
    "workload.schedule.warmup": "--warmup",
    "workload.schedule.final": "--final",
    "workload.clip": "--clip",
    "workload.precision": "--precision",
    "method.name": "--optimizer",
    "method.lr": "--lr",
    "seed": "--seed",
    "micro_batch": "--micro-batch",
    "threads": "--threads",
    "device": "--device",
}
_ALWAYS = ("workload.model", "workload.data", "method.name", "method.lr", "workload.steps", "seed")
_NEVER = ("purpose", "keep_checkpoint", "tensorboard", "cache", "method.label")


def command_line(config: TrainConfig, options: Mapping[str, Any]) -> str:
    """Return the `steepest train` command that repeats a run; `options` are the defaults of its method's options."""
    defaults = _flat(TrainConfig().model_dump())
    defaults |= {f"method.options.{key}": plain(value) for key, value in options.items()}
    words = ["steepest", "train"]
    values = _flat(config.model_dump(exclude={"method": {"options"}}))
    values |= {f"method.options.{key}": plain(value) for key, value in config.method.options.items()}
    if isinstance(config.workload.model, dict):
        values = {key: value for key, value in values.items() if not key.startswith("workload.model.")}
        values["workload.model"] = plain(config.workload.model)
    for key in sorted(values, key=lambda key: list(FLAGS).index(key) if key in FLAGS else len(FLAGS)):
        value = values[key]
        if key in _NEVER or (value == defaults.get(key) and key not in _ALWAYS):
            continue
        text = value if isinstance(value, str) else repr(value) if isinstance(value, float) else json.dumps(value)
        simple = key in FLAGS and not isinstance(value, dict) and value is not None
        words += [FLAGS[key], text] if simple else ["-o", f"{key}={text}"]
    return shlex.join(words)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": plain(value)}
    return flat


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a nested mapping from a .yaml, .yml, .toml or .json file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no configuration file at {path}.")
    text = path.read_text(encoding="utf-8")
    try:
        match path.suffix.lower():
            case ".yaml" | ".yml":
                value = yaml.safe_load(text)
            case ".json":
                value = json.loads(text)
            case ".toml":
                try:
                    import tomllib  # type: ignore[import-not-found]
                except ImportError:  # Python 3.10
                    raise UserError(f"{path}: TOML needs Python 3.11; write it as YAML or JSON.") from None
                value = tomllib.loads(text)
            case suffix:
                raise UserError(f"{path}: unknown kind of file {suffix!r}; use .yaml, .toml or .json.")
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except ValueError as error:  # tomllib's
        raise error if isinstance(error, UserError) else UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold keys and values at the top, found {type(value).__name__}.")
    return cast("dict[str, Any]", value)


def override(config: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return `config` with "dotted.key=value" assignments applied; values are read as YAML (numbers, lists, null)."""
    config = json.loads(json.dumps(config))  # a deep copy of plain values
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"an override is key=value, for example workload.steps=100; got {assignment!r}.")
        try:
            value = _number(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UserError(f"the value of {assignment!r} cannot be read: {error}") from None
        merge(config, key.strip().split("."), value)
    return config


def merge(config: dict[str, Any], path: list[str], value: Any) -> None:
    """Set one nested key, creating the mappings on the way."""
    for name in path[:-1]:
        child = config.setdefault(name, {})
        if not isinstance(child, dict):
            raise UserError(f"{'.'.join(path)}: {name!r} is {child!r}, not a group of keys.")
        config = child
    config[path[-1]] = value


def validate(kind: type[_Model], values: Mapping[str, Any]) -> _Model:
    """Build `kind` from plain values; every fault is one line with the key, the value and the closest known key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, dict(fault)) for fault in error.errors(include_url=False)]
        raise UserError("\n".join(lines)) from None


def _explain(kind: type[BaseModel], fault: dict[str, Any]) -> str:
    location, message = list(fault["loc"]), str(fault["msg"])
    key = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        names = _fields(kind, location[:-1])
        return f"unknown key {key!r}.{closest(str(location[-1]), names)} Known here: {', '.join(names)}."
    if fault["type"] == "value_error":  # raised by one of the validators above: it already names everything
        return message.removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}, got {fault['input']!r}."


def _fields(kind: type[BaseModel], location: list[Any]) -> list[str]:
    for name in location:
        annotation = kind.model_fields[name].annotation if name in kind.model_fields else None
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                kind = candidate
    return list(kind.model_fields)


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 (no dot) as a string; nobody who writes it means one.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, list):
        return [_number(item) for item in value]
    return value
