"""Studies: every method tuned on one seed, its winner run again on fresh seeds, all runs kept.

::

    spaces.py   points, grids, edges
    search.py   where points come from: a grid that grows, or Optuna
    plan.py     where a study stands, from the runs that are over
    claims.py   who carries out which run
    study.py    the folder, and what is known about it
    execution.py  carries out what is missing
    changes.py  what may not change in a study that has runs
    slurm.py    a batch script for a cluster
"""

from steepest.lab.studies.execution import Watcher
from steepest.lab.studies.spaces import choose
from steepest.lab.studies.study import Study

__all__ = ["Study", "Watcher", "choose"]
