"""Read what a study left on disk, and condense it to one row per method.

The files of a run directory are the truth and nothing else is consulted. A run may be half finished, diverged or killed
at any instant: whatever can be read is read, whatever cannot is listed in `Study.problems`, and only runs that reached
the end of their schedule (`final.json` says "done") count in a mean.

::

    records.py   a run, a method with its tuning, a study, what its steps cost
    files.py     files that may be damaged
    reading.py   read_study
    rows.py      headline, fairness
"""

from steepest.lab.results.reading import read_study
from steepest.lab.results.records import Account, Accounting, Method, Point, Record, Run, Study, Trial, number
from steepest.lab.results.rows import Row, SeedCheck, axes, fairness, headline

__all__ = [
    "Account",
    "Accounting",
    "Method",
    "Point",
    "Record",
    "Row",
    "Run",
    "SeedCheck",
    "Study",
    "Trial",
    "axes",
    "fairness",
    "headline",
    "number",
    "read_study",
]
