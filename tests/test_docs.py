"""What the documents say is true: every link resolves, and every Python block runs.

Python blocks of one file run in order and share their names, as a reader would type them. They start with `torch` and
with `model`, a tiny language model. A block that cannot run here has the line `<!-- not run -->`
before it.
"""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import steepest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/**/*.md")]
)
FENCE = re.compile(
    r"^(?P<skip><!-- not run -->\n+)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"!?\[[^\]]*\]\(<?(?P<target>[^)>\s]+)>?[^)]*\)")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_blocks(text: str) -> list[tuple[int, str]]:
    """The runnable Python blocks of a document as (first line number, source)."""
    return [
        (text[: match.start("text")].count("\n") + 1, match["text"])
        for match in FENCE.finditer(text)
        if match["language"] == "python" and not match["skip"]
    ]


def anchors(text: str) -> set[str]:
    """GitHub's heading anchors."""
    headings = re.findall(r"^#+\s+(.*?)\s*$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    broken = []
    for match in LINK.finditer(FENCE.sub("", read(path))):
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue  # the web is not visited
        file = path if not target else path.parent / target
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(read(file))):
            broken.append(match["target"])
    return broken


class TinyModel(nn.Module):
    """The model that examples call `model`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32, 16)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.Linear(16, 16, bias=False)
        self.mlp = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 16))
        self.lm_head = nn.Linear(16, 32, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(tokens)
        hidden = hidden + self.attention(self.norm(hidden))
        return self.lm_head(hidden + self.mlp(hidden))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_resolve(path: Path) -> None:
    assert not broken_links(path)


def run_blocks(file: str) -> None:
    """Run the Python blocks of a document."""
    path = Path(file)
    torch.manual_seed(0)
    names = {"torch": torch, "model": TinyModel(), "__name__": "__main__"}
    for line, source in python_blocks(read(path)):
        # Blank lines keep the line numbers of a traceback those of the document.
        exec(compile("\n" * (line - 1) + source, name(path), "exec"), names)


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if python_blocks(read(p))], ids=name)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    # In a process of its own: an example may define a rule, and rules are registered by name.
    command = [sys.executable, "-c", "import sys, test_docs; test_docs.run_blocks(sys.argv[1])", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_docstring_examples() -> None:
    """`>>>` examples of the core's docstrings."""
    failed = 0
    for module in pkgutil.walk_packages(steepest.__path__, "steepest."):
        if not module.name.startswith("steepest.lab") and not module.name.endswith("__main__"):
            failed += doctest.testmod(importlib.import_module(module.name)).failed
    assert failed == 0


def test_the_link_check_sees_a_broken_link(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Two words!\n[a](#two-words) [b](#three) [c](gone.md) ![d](page.md) [e](https://x.org)\n", encoding="utf-8"
    )
    assert broken_links(page) == ["#three", "gone.md"]


def test_the_block_finder_skips_what_is_marked() -> None:
    text = "x\n```python\na = 1\n```\n<!-- not run -->\n```python\nb\n```\n```bash\nc\n```\n"
    assert python_blocks(text) == [(3, "a = 1\n")]
