"""Is the difference between two methods real, or is it the noise of the seeds? And what else do the runs tell?

Every method of a study is trained from the same seeds, and a seed fixes the initial weights and the order of the data.
Most of the noise is therefore common to two methods and cancels in the *paired* difference, seed by seed. All
conclusions rest on it: a method is called better or worse only if the 95% t interval of the mean paired difference
excludes zero.

Pure functions on plain numbers; nothing here reads a file. A loss is in nats per token, infinite if the run diverged
and NaN if it has not finished. All intervals are of 95%, and those that resample do it alike every time.

| file | question |
|---|---|
| `paired` | better, worse or not decided? |
| `intervals` | bootstrap interval of a mean, divergence rate |
| `noise` | noise floor, minimum detectable effect, seeds that are missing |
| `tuning` | expected best of k trials, learning-rate basin |
| `targets` | steps, tokens, FLOPs, seconds to a target loss |
| `scaling` | data-equivalent speed-up, shared-exponent scaling law |
| `profiles` | performance profiles and mean speed-up over workloads |
| `ranks` | do two tiers agree on the order? |
"""

from steepest.lab.statistics.intervals import CONFIDENCE, Interval, bootstrap_interval, divergence_rate
from steepest.lab.statistics.noise import (
    DETECTABLE,
    POWER,
    Noise,
    minimum_detectable_effect,
    more_seeds,
    noise_floor,
)
from steepest.lab.statistics.paired import (
    Comparison,
    Summary,
    Verdict,
    compare,
    holm,
    paired_differences,
    sign_flip_p,
    summarize,
)
from steepest.lab.statistics.profiles import (
    LIMIT,
    Profile,
    SpeedUp,
    geometric_speedups,
    performance_profiles,
)
from steepest.lab.statistics.ranks import RankCorrelation, rank_correlation
from steepest.lab.statistics.scaling import (
    HORIZONS,
    DataSpeedUp,
    Multiplier,
    ScalingLaw,
    SharedLaw,
    data_speedups,
    fit_scaling_law,
    fit_shared_law,
)
from steepest.lab.statistics.targets import LossCurve, Target, ToTarget, target_loss, to_target
from steepest.lab.statistics.tuning import WITHIN, Basin, BestOfK, basin_width, expected_best_of_k

__all__ = [
    "CONFIDENCE",
    "DETECTABLE",
    "HORIZONS",
    "LIMIT",
    "POWER",
    "WITHIN",
    "Basin",
    "BestOfK",
    "Comparison",
    "DataSpeedUp",
    "Interval",
    "LossCurve",
    "Multiplier",
    "Noise",
    "Profile",
    "RankCorrelation",
    "ScalingLaw",
    "SharedLaw",
    "SpeedUp",
    "Summary",
    "Target",
    "ToTarget",
    "Verdict",
    "basin_width",
    "bootstrap_interval",
    "compare",
    "data_speedups",
    "divergence_rate",
    "expected_best_of_k",
    "fit_scaling_law",
    "fit_shared_law",
    "geometric_speedups",
    "holm",
    "minimum_detectable_effect",
    "more_seeds",
    "noise_floor",
    "paired_differences",
    "performance_profiles",
    "rank_correlation",
    "sign_flip_p",
    "summarize",
    "target_loss",
    "to_target",
]
