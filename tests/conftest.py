"""Shared by all tests. Its place puts `tests/` on the import path, so that tests can import `reference`."""

import pytest
import torch


@pytest.fixture(scope="session")
def working_compiler() -> None:
    """Skip the test where torch.compile cannot build code: no C++ compiler, or a path with a space in it."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8))
    except torch._dynamo.exc.BackendCompilerFailed:
        pytest.skip("torch.compile cannot build code here (no C++ compiler, or a space in the path of the packages)")


@pytest.fixture(autouse=True)
def compiled_backend(request: pytest.FixtureRequest) -> None:
    """A test with the parameter ``backend="compile"`` needs the compiler."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend") == "compile":
        request.getfixturevalue("working_compiler")
