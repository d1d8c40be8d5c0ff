"""Imports point one way, and the core stays light.

lab -> scaling -> engine -> {rules, routing} -> kernels -> torch
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "steepest"

# What each part of the package may import from the others (always also itself and the leaves `_*.py`).
CORE = {"kernels", "rules", "routing", "sharding", "engine", "optimizers", "scaling", "theory"}
MAY_IMPORT: dict[str, set[str]] = {
    "kernels": set(),
    "sharding": {"kernels"},
    "rules": {"kernels"},
    "routing": {"kernels", "sharding"},
    "theory": {"kernels"},
    "engine": {"kernels", "rules", "routing", "sharding"},
    "optimizers": {"kernels", "rules", "routing", "sharding", "engine"},
    "scaling": {"kernels", "rules", "routing", "sharding", "engine", "optimizers"},
    "__init__": CORE,
    "__main__": {"lab"},  # the console script: it imports the lab late, and says how to install it when that fails
    "lab": CORE,
}
# The same, but under `if TYPE_CHECKING:` only: names for annotations.
FOR_TYPES_ONLY: dict[str, set[str]] = {"routing": {"rules"}, "rules": {"engine", "routing"}}
CORE_PACKAGES = {"torch", "numpy", "steepest", *sys.stdlib_module_names}
# The one core file that may use process groups.
DISTRIBUTED_FILE = "sharding.py"


def part_of(path: Path) -> str:
    """First level below the package: src/steepest/rules/lion.py -> rules, src/steepest/sharding.py -> sharding."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports_of(path: Path) -> list[tuple[str, bool, int]]:
    """Every import in a file, wherever it stands, as (absolute dotted name, for types only, line)."""
    found: list[tuple[str, bool, int]] = []
    module = ["steepest", *path.relative_to(PACKAGE).with_suffix("").parts]

    def visit(node: ast.AST, types_only: bool) -> None:
        if isinstance(node, ast.If) and is_type_checking(node.test):
            for child in node.body:
                visit(child, True)
            for child in node.orelse:
                visit(child, types_only)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, types_only, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from steepest import rules` names the module rules, so the imported names count too.
            found.extend((f"{name}.{alias.name}", types_only, node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, types_only)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def sibling(name: str) -> str | None:
    """The part of steepest that an import reaches; None for other packages, `__init__` for the package itself."""
    top, _, rest = name.partition(".")
    if top != "steepest":
        return None
    part = rest.partition(".")[0]
    return part if (part and (PACKAGE / part).is_dir()) or (PACKAGE / f"{part}.py").exists() else "__init__"


def direction_problems() -> list[str]:
    problems = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = part_of(path)
        where = path.relative_to(PACKAGE.parent)
        leaf = part.startswith("_") and not part.startswith("__")
        if not leaf and part not in MAY_IMPORT:
            problems.append(f"{where}: no row for {part!r} in MAY_IMPORT; decide what it may import and add one")
            continue
        allowed = set() if leaf else MAY_IMPORT[part]
        for name, types_only, line in imports_of(path):
            target = sibling(name)
            if target is None or target == part or (target.startswith("_") and not target.startswith("__")):
                continue
            if part == "lab" and target == "__init__":
                continue  # the lab is a user of the public names
            if target in allowed or (types_only and target in FOR_TYPES_ONLY.get(part, set())):
                continue
            problems.append(f"{where}:{line}: {part} may not import {name} (allowed: {sorted(allowed)})")
    return problems


def core_files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if part_of(path) not in {"lab", "__main__"}]


def test_imports_point_one_way() -> None:
    assert not direction_problems(), "\n".join(direction_problems())


def test_core_imports_only_torch_numpy_and_the_standard_library() -> None:
    foreign = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {name}"
        for path in core_files()
        for name, types_only, line in imports_of(path)
        if name.partition(".")[0] not in CORE_PACKAGES
    ]
    assert not foreign, "\n".join(foreign)


def test_only_sharding_imports_torch_distributed() -> None:
    users = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {name}"
        for path in core_files()
        for name, _, line in imports_of(path)
        if name.startswith("torch.distributed") and path.name != DISTRIBUTED_FILE
    ]
    assert not users, "\n".join(users)


def lab_only_modules() -> set[str]:
    """Import names of everything the extras bring that torch and numpy do not bring themselves."""

    def names(requirements: list[str] | None) -> set[str]:
        found = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements or [])
        return {re.sub(r"[-_.]+", "-", match.group()).lower() for match in found if match}

    extras = names([r for r in importlib.metadata.requires("steepest") or [] if "extra ==" in r])
    core = {"torch", "numpy", "steepest"} | names(importlib.metadata.requires("torch"))
    wanted = extras - core
    return {
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if wanted & {re.sub(r"[-_.]+", "-", distribution).lower() for distribution in distributions}
    }


def test_importing_steepest_loads_nothing_of_the_extras() -> None:
    heavy = lab_only_modules()
    assert {"transformers", "pydantic", "typer"} <= heavy, "the list of the extras' modules was not understood"
    code = "import sys, steepest; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "steepest" in loaded
    assert not heavy & set(loaded)


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("kernels/_probe_.py", "from steepest.engine import anything", "kernels may not import"),
        ("kernels/_probe_.py", "from ..rules import Lion", "kernels may not import"),
        ("routing/_probe_.py", "from steepest import rules", "routing may not import"),
        ("engine/_probe_.py", "def late():\n    import steepest.lab.config", "engine may not import"),
        ("rules/_probe_.py", "import steepest", "rules may not import"),
        ("unheard_of.py", "import torch", "no row for 'unheard_of'"),
    ],
)
def test_the_check_sees_a_wrong_import(
    file: str, line: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("kernels", "rules", "routing", "engine", "lab"):
        (tmp_path / "steepest" / part).mkdir(parents=True)
    (tmp_path / "steepest" / file).write_text(line, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "steepest")
    problems = direction_problems()
    assert len(problems) == 1
    assert complaint in problems[0]


def test_the_check_accepts_what_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("kernels", "rules", "routing", "engine", "lab"):
        (tmp_path / "steepest" / part).mkdir(parents=True)
    right = {
        "_errors.py": "import difflib",
        "rules/lion.py": "import torch\nfrom steepest import kernels, _errors\nfrom . import base",
        "routing/route.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from steepest.rules import Rule",
        "engine/step.py": "from ..rules import Rule\nfrom steepest.routing.views import View",
        "lab/train.py": "import steepest\nfrom steepest import rules, LionMuon",
    }
    for file, text in right.items():
        (tmp_path / "steepest" / file).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "steepest")
    assert direction_problems() == []
