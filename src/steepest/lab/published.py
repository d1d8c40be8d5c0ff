"""Published results beside ours: the numbers of papers, with the protocol each was made under.

They are never mixed with measured ones, and no verdict is given where the noise of the published number is unknown,
which is nearly everywhere: most tables are of one seed. The order of the methods may be compared, as an order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from steepest.lab.statistics import RankCorrelation, rank_correlation

# The C4 harness of GaLore divides the sum of n batch losses by n + 1 (its counter starts at 1). It stops after 10
# million tokens that are no padding, about 84% of a batch of 256-token rows: n is 363 with 128 rows a batch on one GPU
# and 45 with 256 rows on each of four, the ends of what its scripts use.
GALORE_BATCHES = (45, 363)


@dataclass(frozen=True)
class Protocol:
    """Under what conditions the numbers of a table were made; a string is "" where nobody says.

    Attributes:
        model: family and size.
        tokens: of one run; NaN if unknown.
        batch: tokens of a step.
        schedule: shape and where it ends.
        evaluation: on what.
        seeds: how many.
        value: "best" (the lowest of a run) or "last" (at the end of the schedule).
        tuning: how the rates were found.
    """

    model: str
    data: str
    tokens: float
    batch: float
    schedule: str
    evaluation: str
    seeds: int
    value: str
    tuning: str = ""


@dataclass(frozen=True)
class Published:
    """One column of a published table.

    Attributes:
        key: a name for files.
        source: whose it is and where it stands.
        quantity: "loss" (nats per token) or "perplexity".
        values: by method of the lab, or by label for a variant ("lionmuon P=2").
        sigma: standard deviation over seeds by method, where it is published.
        baseline: the method that differences are taken to.
        galore: perplexities of the C4 harness of GaLore, which are biased low.
    """

    key: str
    title: str
    source: str
    quantity: str
    protocol: Protocol
    values: Mapping[str, float]
    sigma: Mapping[str, float] = field(default_factory=dict)
    baseline: str = "adamw"
    galore: bool = False

    def loss(self, method: str) -> float:
        """A value as a loss in nats; NaN if there is none. That of a GaLore perplexity is the biased one."""
        found = self.values.get(method, math.nan)
        return math.log(found) if self.quantity == "perplexity" else found

    def corrected(self, method: str) -> tuple[float, float]:
        """Lowest and highest perplexity that a biased one of the GaLore harness may stand for.

        A printed loss L is that of n batches over n + 1, so the perplexity is exp(L (n + 1) / n).
        """
        loss = self.loss(method)
        low, high = sorted(loss * (n + 1) / n for n in GALORE_BATCHES)
        return math.exp(low), math.exp(high)


_LIONMUON = "LionMuon, released training logs (v1 of the paper's code, 124M and 355M)"
_LIONMUON_PROTOCOL = Protocol(
    model="GPT-2 124M",
    data="FineWeb",
    tokens=64_000 * 16_384.0,
    batch=16_384.0,
    schedule="cosine to 0",
    evaluation="524k tokens (32 batches)",
    seeds=1,
    value="best",
    tuning="none for AdamW and Lion; grids at 3,000 steps, 5% of the horizon, for the others",
)
_LIONMUON_METHODS = (
    *("adamw", "signum", "lion", "muon", "signmuon P=2", "signmuon P=5", "signmuon P=20", "signmuon P=100"),
    *("lionmuon P=1", "lionmuon P=2", "lionmuon P=5", "lionmuon P=20", "lionmuon P=100"),
)
_LIONMUON_124M = {
    ("FineWeb", "GPT-2"): "3.5525 3.5972 3.5794 3.5257 3.5103 3.5178 3.5464 3.5810 3.5102 3.5006 3.5060 3.5233 3.5536",
    ("FineWeb", "LLaMA"): "3.5017 3.5325 3.5099 3.5015 3.4791 3.4834 3.5118 3.5293 3.4714 3.4632 3.4673 3.4792 3.4960",
    ("SlimPajama", "GPT-2"): "3.1687 3.2106 3.1897 3.1387 3.1283 3.1353 3.1634 3.1957 "
    "3.1254 3.1133 3.1197 3.1368 3.1653",
    ("SlimPajama", "LLaMA"): "3.1258 3.1452 3.1230 3.1200 3.0961 3.0988 3.1243 3.1404 "
    "3.0900 3.0777 3.0796 3.0884 3.1091",
    ("WikiText-103", "GPT-2"): "2.9392 2.9434 2.9276 2.8838 2.8797 2.9006 2.9148 2.9300 "
    "2.8768 2.8827 2.8905 2.9061 2.9208",
    ("WikiText-103", "LLaMA"): "2.9121 2.9121 2.9010 2.8613 2.8500 2.8665 2.8793 2.8965 "
    "2.8497 2.8583 2.8659 2.8773 2.8947",
}


def _lionmuon() -> list[Published]:
    found = [
        Published(
            key=f"lionmuon-124m-{data}-{model}".lower(),
            title=f"LionMuon, 124M {model} on {data}",
            source=_LIONMUON,
            quantity="loss",
            protocol=replace(_LIONMUON_PROTOCOL, model=f"{model} 124M", data=data),
            values=dict(zip(_LIONMUON_METHODS, map(float, numbers.split()), strict=True)),
        )
        for (data, model), numbers in _LIONMUON_124M.items()
    ]
    large = replace(_LIONMUON_PROTOCOL, model="GPT-2 355M", tokens=math.nan)
    second = "LionMuon, second version of the paper"
    found.append(
        Published(
            key="lionmuon-355m-v1",
            title="LionMuon, 355M GPT-2 on FineWeb (v1)",
            source=_LIONMUON,
            quantity="loss",
            protocol=replace(large, tuning="0.75 times the rates at 124M; AdamW 5e-3"),
            values={
                **{"signmuon P=2": 3.0454, "lionmuon P=2": 3.0541, "lionmuon P=5": 3.0556, "lionmuon P=1": 3.0583},
                **{"muon": 3.0630, "signmuon P=5": 3.0741, "adamw": 3.1069, "lion": 3.1660, "signum": 3.1970},
            },
        )
    )
    found.append(
        Published(
            key="lionmuon-355m-second",
            title="LionMuon, 355M GPT-2 on FineWeb (second version)",
            source=second,
            quantity="loss",
            protocol=replace(large, tuning="the rates at 124M; AdamW 1e-3, Lion 3e-4"),
            values={
                **{"signmuon P=2": 3.008, "lionmuon P=2": 3.020, "lionmuon P=5": 3.023, "muon": 3.040},
                **{"signmuon P=5": 3.072, "adamw": 3.064, "lion": 3.050, "signum": 3.081},
            },
        )
    )
    found.append(
        Published(
            key="lionmuon-124m-second",
            title="LionMuon, 124M GPT-2 on FineWeb (second version, retuned)",
            source=f"{second}; LionMuon: mean of three seeds, the others of one",
            quantity="loss",
            protocol=replace(_LIONMUON_PROTOCOL, tuning="retuned"),
            values={
                **{"lionmuon P=2": 3.498, "lionmuon P=5": 3.498, "adamw": 3.548, "lion": 3.567, "signum": 3.590},
                **{"muon": 3.528},
            },
            sigma={"lionmuon P=2": 0.002, "lionmuon P=5": 0.002},
        )
    )
    return found


_SAC_METHODS = (
    *("adamw", "adabelief", "adamp", "lamb", "nadam", "radam", "adan", "prodigy", "mars+adamw", "sgg+adamw"),
    *("sac+adamw", "adam8bit", "adam-mini", "adafactor", "came", "apollo", "lion", "sophia", "mars+lion"),
    *("sac+adam-mini", "shampoo", "muon", "soap", "mars+shampoo", "sac+shampoo"),
)
# size, steps, perplexities in the order of the methods
_SAC_TABLE_1 = (
    ("60M", 10_000, "29.19 29.49 29.34 29.08 32.75 29.23 29.40 32.33 29.10 29.98 28.63 29.47 29.63 29.07 29.26 29.82 "
                    "34.80 35.14 31.50 29.49 29.30 28.91 28.60 29.13 29.22"),
    ("130M", 20_000, "22.64 22.92 22.52 22.57 24.04 22.67 22.30 29.56 22.26 22.13 21.85 22.74 23.08 22.38 22.55 22.18 "
                     "24.95 25.09 25.02 22.62 22.01 22.19 22.15 21.96 21.96"),
    ("350M", 60_000, "16.97 17.46 17.04 16.89 17.57 16.94 17.01 17.96 16.65 16.97 16.16 17.35 19.25 16.96 16.84 16.54 "
                     "18.84 18.42 18.36 16.66 16.71 16.72 16.79 16.49 16.61"),
    ("1B", 100_000, "14.40 16.85 14.41 15.32 16.48 14.30 14.70 14.94 14.76 14.34 13.58 14.49 16.44 16.25 15.76 13.91 "
                    "17.01 17.62 16.94 14.23 14.34 14.52 14.58 13.75 14.07"),
)  # fmt: skip


def _sac() -> list[Published]:
    return [
        Published(
            key=f"sac-{size.lower()}",
            title=f"SAC Table 1, LLaMA-{size} on C4",
            source="SAC, Table 1 (baselines in part from the GaLore, APOLLO and SGG papers)",
            quantity="perplexity",
            protocol=Protocol(
                model=f"LLaMA {size}",
                data="C4",
                tokens=steps * 131_072.0,
                batch=131_072.0,
                schedule="cosine to 10%",
                evaluation="10M tokens, harness of GaLore",
                seeds=1,
                value="last",
                tuning="rates {1e-3, 3e-3, 1e-2, 2e-2}; the table has others, too",
            ),
            values=dict(zip(_SAC_METHODS, map(float, numbers.split()), strict=True)),
            galore=True,
        )
        for size, steps, numbers in _SAC_TABLE_1
    ]


PUBLISHED: tuple[Published, ...] = (*_lionmuon(), *_sac())


@dataclass(frozen=True)
class Ours:
    """What our study has to say about one method: its final loss, and the difference to the baseline.

    `method` is its name, with the period where it has one: "lionmuon P=5".
    """

    method: str
    label: str
    loss: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """A published number beside ours.

    Attributes:
        theirs: loss in nats as printed (the log of a perplexity).
        difference: theirs, to their baseline.
        verdict: why there is none, or whether the differences agree.
    """

    ours: Ours
    theirs: float
    difference: float
    verdict: str


def beside(table: Published, ours: Sequence[Ours], study: Protocol) -> list[Pair]:
    """Our methods that are in a published table, in our order, each with a verdict or the reason why there is none."""
    base = table.loss(table.baseline)
    pairs = []
    for own in ours:
        if own.method in table.values:
            theirs = table.loss(own.method)
            pairs.append(Pair(own, theirs, theirs - base, _verdict(table, own, study, theirs - base)))
    return pairs


def _verdict(table: Published, ours: Ours, study: Protocol, difference: float) -> str:
    name = ours.method
    if name == table.baseline:
        return "baseline"
    missing = [n for n in (name, table.baseline) if n not in table.sigma]
    if missing:
        return "none: the noise of their number is unknown" + (" (one seed)" if table.protocol.seeds == 1 else "")
    changed = protocol_differences(table.protocol, study)
    if changed:
        return f"none: another protocol ({', '.join(changed)})"
    # of their difference twice the standard error, from their own seeds; of ours the interval
    noise = 2 * math.sqrt((table.sigma[name] ** 2 + table.sigma[table.baseline] ** 2) / max(table.protocol.seeds, 1))
    half = (ours.high - ours.low) / 2
    if not math.isfinite(half):
        return "none: our noise is unknown"
    return "agrees" if abs(ours.difference - difference) <= math.hypot(noise, half) else "differs"


def protocol_differences(theirs: Protocol, ours: Protocol) -> list[str]:
    """In what two protocols differ, in words: "tokens 1.05 B, here 819 k"."""
    from steepest.lab.wording import compact

    found = []
    for name in ("model", "data", "schedule", "evaluation", "value"):
        a, b = getattr(theirs, name), getattr(ours, name)
        if a != b:
            found.append(f"{name} {a or 'unknown'}, here {b or 'unknown'}")
    for name in ("tokens", "batch", "seeds"):
        a, b = getattr(theirs, name), getattr(ours, name)
        if not (math.isfinite(a) and math.isfinite(b) and math.isclose(a, b, rel_tol=1e-3)):
            words = [compact(v) if math.isfinite(v) else "unknown" for v in (a, b)]
            found.append(f"{name} {words[0]}, here {words[1]}")
    return found


def order(pairs: Sequence[Pair]) -> RankCorrelation:
    """Kendall's rank correlation of our order with theirs."""
    return rank_correlation(
        {pair.ours.label: pair.theirs for pair in pairs}, {pair.ours.label: pair.ours.loss for pair in pairs}
    )


def relevant(ours: Sequence[Ours], least: int = 3) -> list[Published]:
    """The tables that have at least so many of our methods."""
    return [t for t in PUBLISHED if sum(own.method in t.values for own in ours) >= least]
