"""A SLURM array script for a study: every task is one more process that takes runs from the shared folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from steepest.lab.errors import UserError

# No rendezvous: tasks meet in the folder. SLURM sends TERM two minutes before the end; runs are then saved, and the
# task is queued again.
_SCRIPT = """#!/bin/bash
#SBATCH --job-name={{ name }}
#SBATCH --array=0-{{ tasks - 1 }}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={{ workers }}
#SBATCH --time={{ time }}
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={{ name }}-%A_%a.log
{% if partition %}#SBATCH --partition={{ partition }}
{% endif %}{% if gpus %}#SBATCH --gpus-per-task={{ gpus }}
{% endif %}
{{ python }} -m steepest study run {{ file }} --out {{ out }} --workers {{ workers }}{{ set }} --no-report --quiet &
study=$!
trap 'kill -TERM $study' TERM
wait $study
code=$?
if [ $code -gt 128 ]; then  # the trap ended the first wait; now wait for the runs to be saved
  wait $study
  code=$?
fi
if [ $code -eq 130 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit $code
"""


def script(
    name: str,
    file: Path,
    out: Path,
    *,
    tasks: int,
    workers: int,
    time: str,
    partition: str | None = None,
    gpus: int = 0,
    overrides: Sequence[str] = (),
) -> str:
    """The script.

    Args:
        name: of the study.
        file: the study file; its absolute path is written, as is that of `out`.
        out: the folder that all tasks share.
        tasks: of the array.
        workers: of a task, and its cores.
        time: limit of a task, as SLURM writes it.
        partition: of the cluster; None leaves it to the cluster.
        gpus: of a task.
        overrides: of keys of the file, "dotted.key=value".

    Raises:
        UserError: a value that would not stay one word on a line of SLURM's.
    """
    words = {"name": "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name), "time": time}
    words |= {"partition": partition or ""}
    for key, value in words.items():
        if value and not all(letter.isalnum() or letter in "-_.:,+" for letter in value):
            raise UserError(f"--{key} must be one word of letters, digits and -_.:,+ for SLURM, got {value!r}.")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(_SCRIPT).render(
        **words,
        tasks=tasks,
        workers=workers,
        gpus=gpus,
        set="".join(f" -o {shlex.quote(assignment)}" for assignment in overrides),
        python=shlex.quote(sys.executable),
        file=shlex.quote(str(file.resolve())),
        out=shlex.quote(str(out.resolve())),
    )
