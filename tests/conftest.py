"""Shared by all tests. Its place puts `tests/` on the import path, so that tests can import `reference`."""
