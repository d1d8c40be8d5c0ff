"""Findings about a machine: what the lab will use, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from steepest.lab.data import cache_directory

_OLDEST_PYTHON, _OLDEST_TORCH = (3, 10), (2, 9)
_ROOMY_GB = 2.0  # the demo needs about 0.1; a few checkpoints of a 100M model need this
_PACKAGES = ("transformers", "tokenizers", "pydantic", "typer", "rich", "scipy", "plotly", "matplotlib", "jinja2")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: how serious it is, what was found, and the remedy where there is one."""

    level: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""


def examine(cache: Path | None = None, network: bool = False) -> list[Finding]:
    """Look at everything; `network` also tries to reach the package index."""
    found = [*_python(), *_torch(), *_processor(), *_accelerators(), *_compiler(), *_distributed(), *_disk(cache)]
    return found + (list(_network()) if network else [])


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        yield Finding("fail", f"Python {version}", "steepest needs Python 3.10 or newer.")
    else:
        yield Finding("ok", f"Python {version} on {platform.platform()}")
    missing = []
    for name in _PACKAGES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("fail", f"missing packages: {', '.join(missing)}", 'pip install "steepest[lab]"')
    else:
        yield Finding("ok", f"transformers {metadata.version('transformers')} and the other packages of the lab")


def _torch() -> Iterator[Finding]:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _OLDEST_TORCH:
        yield Finding("fail", f"torch {torch.__version__}", "steepest needs torch 2.9 or newer: pip install -U torch")
    else:
        yield Finding("ok", f"torch {torch.__version__}")
    cores, threads = len(_usable_cores()), torch.get_num_threads()
    if threads > cores:
        yield Finding(
            "warn",
            f"torch uses {threads} threads on {cores} cores",
            f"set OMP_NUM_THREADS={cores}, or --threads {cores}",
        )
    else:
        yield Finding("ok", f"{threads} torch threads on {cores} cores (comparisons run {cores} single-thread workers)")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores:
        yield Finding(
            "warn",
            f"load average {load:.1f} on {cores} cores: times and tokens/s will mislead",
            "losses are unaffected",
        )


def _processor() -> Iterator[Finding]:
    capability = torch.backends.cpu.get_cpu_capability()
    fast = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    )
    what = f"processor features {capability}, bf16 in hardware: {'yes' if fast else 'no'}"
    yield Finding("ok", what, "" if fast else "precision auto will find fp32 faster on this processor")


def _accelerators() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            yield Finding(
                "ok", f"GPU {index}: {torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
            )
    elif shutil.which("nvidia-smi") is not None and torch.version.cuda is None:
        yield Finding(
            "warn", "there is an NVIDIA driver, but this torch is a CPU build",
            "install a CUDA build of torch, see https://pytorch.org/get-started/locally",
        )  # fmt: skip
    else:
        yield Finding("ok", "no GPU; models of up to a few million parameters train on the processor")


def _compiler() -> Iterator[Finding]:
    compiler = next((path for name in ("c++", "g++", "clang++", "cl") if (path := shutil.which(name))), None)
    if compiler is None:
        yield Finding(
            "warn", "no C++ compiler: torch.compile cannot be used on the processor",
            "everything works without; for faster elementwise steps install g++ or clang++",
        )  # fmt: skip
    else:
        yield Finding("ok", f"C++ compiler {compiler}")


def _distributed() -> Iterator[Finding]:
    from torch import distributed

    if not distributed.is_available():
        yield Finding("warn", "this torch has no distributed package", "several processes on one run are not possible")
        return
    names = {
        "gloo": distributed.is_gloo_available(),
        "nccl": distributed.is_nccl_available(),
        "mpi": distributed.is_mpi_available(),
    }
    yield Finding("ok", f"distributed backends: {', '.join(name for name, there in names.items() if there) or 'none'}")


def _disk(cache: Path | None) -> Iterator[Finding]:
    folders = {
        "working folder": Path.cwd(),
        "cache folder": cache_directory(cache),
        "temporary folder": Path(tempfile.gettempdir()),
    }
    for what, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free / 1e9
        if not os.access(existing, os.W_OK):
            remedy = (
                "set STEEPEST_CACHE to a folder of yours" if what.startswith("cache") else "change to a folder of yours"
            )
            yield Finding("fail", f"{what} {folder} is not writable", remedy)
        elif free < _ROOMY_GB:
            yield Finding("warn", f"{what} {folder}: {free:.1f} GB free", "checkpoints of larger models may not fit")
        else:
            yield Finding("ok", f"{what} {folder}: {free:.1f} GB free")


def _network() -> Iterator[Finding]:
    host = "pypi.org"
    try:
        socket.create_connection((host, 443), timeout=5).close()
        yield Finding("ok", f"{host} can be reached")
    except OSError as error:
        yield Finding(
            "warn", f"{host} cannot be reached ({error})",
            "if pip works through a mirror or proxy, data will too; else use --data synthetic or --text",
        )  # fmt: skip


def _usable_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
