"""The package as a whole: what is shipped, pinned and documented, and what the set-up says when it cannot work."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import steepest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "steepest"
# Folders that are made, not written.
MADE = re.compile(
    r"\.git|\.venv|\..*_cache|\.hypothesis|__pycache__|build|dist|runs|report|lightning_logs|.*\.egg-info"
)
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".cff",
    ".yaml",
    ".yml",
    ".json",
    ".sh",
    ".j2",
    ".html",
    ".svg",
    ".css",
    ".js",
    "",
}


def written_files() -> list[Path]:
    """Files that belong to the project: what git tracks or would track, else everything outside the made folders."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        output = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        files = [ROOT / name for name in output.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked source archive, or a machine without git
        files = list(ROOT.rglob("*"))
    written = (f for f in files if not any(MADE.fullmatch(part) for part in f.relative_to(ROOT).parts[:-1]))
    return [f for f in written if f.is_file() and f.suffix in TEXT]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if name.startswith("steepest/")}
    source = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    source = {name for name in source if "__pycache__" not in name}
    assert "steepest/py.typed" in shipped
    assert shipped == source


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_string(wheel.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == steepest.__version__
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    core = {
        canonicalize_name(Requirement(r).name) for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r
    }
    assert core == {"torch", "numpy"}


def test_license_is_the_whole_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) > 11_000


def test_one_version_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {steepest.__version__}\n" in citation
    assert f"## [{steepest.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_public_name_is_documented() -> None:
    undocumented = []
    for name in steepest.__all__:
        value = getattr(steepest, name)
        if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
            continue  # a number or a string, such as __version__
        text = value.__doc__ or ""
        # A dataclass without a docstring gets its signature as one.
        if not text.strip() or text.startswith(f"{name}("):
            undocumented.append(name)
    assert steepest.__all__
    assert not undocumented


def test_no_path_of_one_machine_in_the_tree() -> None:
    own = re.compile(r"""(?<![\w.$}>)-])/(?:work|root|home/\w+|Users/\w+|tmp/\w+)/""")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in written_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if own.search(line)
    ]
    assert not found, "\n".join(found)


# Constraints -----------------------------------------------------------------------------------------------------


def test_constraints_pin_everything_that_is_installed() -> None:
    """Every package that `.[dev]` brings has exactly one pin, and the pin is what is installed here."""
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            assert "+" not in pin.version, f"{line}: a local version exists on no index"
            assert canonicalize_name(requirement.name) not in pins
            if requirement.marker is None or requirement.marker.evaluate():
                pins[canonicalize_name(requirement.name)] = pin.version
    assert "steepest" not in pins

    seen: set[tuple[str, str]] = set()
    missing, todo = set(), [("steepest", "dev"), ("hatchling", ""), ("editables", "")]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            missing.add(f"{name} is not installed")
            continue
        if name not in pins and name != "steepest" and sys.version_info >= (3, 11):
            missing.add(f"{name} has no pin")
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted = canonicalize_name(requirement.name)
                # torch pins its own CUDA packages, which differ from platform to platform.
                if not wanted.startswith(("nvidia-", "cuda-", "triton", "pytorch-triton")):
                    todo += [(wanted, "")] + [(wanted, option) for option in requirement.extras]
    assert not missing, sorted(missing)
    installed = {name for name, _ in seen} - {"steepest"}
    drifted = {n: (pins[n], v) for n in installed if n in pins and (v := public_version(n)) != pins[n]}
    assert not drifted, f"installed differs from the pin: {drifted}"


def public_version(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]


# Set-up and continuous integration -----------------------------------------------------------------------------------


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + body, encoding="utf-8")
    path.chmod(0o755)
    return path


def run_setup(project: Path, python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    shutil.copytree(ROOT / "scripts", project / "scripts", dirs_exist_ok=True)
    return subprocess.run(
        ["sh", "scripts/setup.sh", "lab"],
        cwd=project,
        env={**os.environ, "PYTHON": python, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# A stand-in for an interpreter: new enough, and `-m venv` makes a .venv whose pip does what `pip` says.
PYTHON = """
case "$*" in
  --version) echo "Python 3.11.7" ;;
  "-m venv --clear .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *'version("torch")'*) exit 1 ;;
  *"pip install"*) {pip} ;;
esac
"""


def test_setup_without_python(tmp_path: Path) -> None:
    result = run_setup(tmp_path, "no-such-python")
    assert result.returncode == 1
    assert "no Python found as 'no-such-python'" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_setup_with_an_old_python(tmp_path: Path) -> None:
    old = script(tmp_path / "old", 'if [ "$1" = --version ]; then echo "Python 3.8.18"; else exit 1; fi')
    result = run_setup(tmp_path, str(old))
    assert result.returncode == 1
    assert "Python 3.8.18, but Python 3.10 or newer is needed" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_setup_without_the_venv_module(tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", 'case "$*" in *"import venv"*) exit 1 ;; *) exit 0 ;; esac')
    result = run_setup(tmp_path, str(bare))
    assert result.returncode == 1
    assert "no venv module" in result.stderr
    assert "apt install python3-venv" in result.stderr


def test_setup_with_too_little_space(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "df", "echo header; echo /dev/disk 9000000 1 3145728 1% /")
    python = script(tmp_path / "python", PYTHON.format(pip="exit 0"))
    result = run_setup(tmp_path, str(python), PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert result.returncode == 1
    assert "only 3 GB are free" in result.stderr


def test_setup_without_a_network(tmp_path: Path) -> None:
    python = script(tmp_path / "python", PYTHON.format(pip="echo 'connection refused' >&2; exit 1"))
    result = run_setup(tmp_path, str(python))
    assert result.returncode == 1
    assert "connection refused" in result.stderr
    assert "check the network" in result.stderr
    assert not (tmp_path / ".venv" / ".installed-lab").exists()


def test_setup_hands_over_pip_arguments(tmp_path: Path) -> None:
    python = script(tmp_path / "python", PYTHON.format(pip='echo "$*" >> pip.log'))
    result = run_setup(tmp_path, str(python), PIP_ARGS="--find-links wheels --no-index")
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "pip.log").read_text(encoding="utf-8").splitlines()
    assert len(calls) == 2
    assert all("-c constraints.txt --find-links wheels --no-index" in call for call in calls)
    assert calls[-1].endswith("-e .[lab]")
    assert (tmp_path / ".venv" / ".installed-lab").exists()
    assert not (tmp_path / ".venv" / ".installed-dev").exists()


def test_setup_repairs_a_broken_environment(tmp_path: Path) -> None:
    script(tmp_path / ".venv" / "bin" / "python", "exit 127")
    python = script(tmp_path / "python", PYTHON.format(pip="exit 0"))
    result = run_setup(tmp_path, str(python))
    assert result.returncode == 0, result.stderr
    assert "creating .venv" in result.stdout


def test_setup_keeps_an_environment_without_pip(tmp_path: Path) -> None:
    log = 'echo "$*" >> calls.log; case "$*" in "-m pip --version") exit 1 ;; *"pip install"*) exit 0 ;; esac'
    script(tmp_path / ".venv" / "bin" / "python", log)
    result = run_setup(tmp_path, "no-such-python")
    assert result.returncode == 0, result.stderr
    assert "-m ensurepip" in (tmp_path / "calls.log").read_text(encoding="utf-8").splitlines()
    assert "creating .venv" not in result.stdout


def test_continuous_integration_fails_when_nothing_is_collected(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    nothing = [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider"]
    assert subprocess.run(nothing, cwd=tmp_path, capture_output=True, check=False).returncode == 5
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in ci
    assert ci.rstrip().endswith("\nmake test")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
