"""All runs below a folder: found, listed, compared, exported, cleaned up, and other people's runs taken in.

The run directories are the truth. The index is a SQLite file made from them, brought up to date whenever it is used; it
may be deleted at any time.

::

    index.py       find runs, keep what lists need in SQLite
    comparing.py   what differs between runs
    exporting.py   Parquet, TensorBoard
    cleaning.py    what may be deleted
    importing.py   summary.json of llm-baselines and LionMuon
"""

from steepest.lab.store.index import Entry, Index

__all__ = ["Entry", "Index"]
