"""Slow, obvious float64 numpy versions of the library's mathematics, written from the formulas.

Nothing here imports torch or steepest, nothing is vectorised for speed, and no file here is derived from the library:
these modules are what the library is compared with. The oracle itself is tested by ``test_reference.py``.
"""
