"""Processes of one machine that train together, for tests of sharded and replicated optimizers."""

from __future__ import annotations

import datetime
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORLD = 2
TIMEOUT = 120.0  # seconds for everything; a process that hangs or fails ends its peer

needs_processes = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


def run(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``work(rank)``, a function of a module, returns in each of ``WORLD`` processes, with a process group."""
    context = torch.multiprocessing.start_processes(
        _process, args=(work, str(folder)), nprocs=WORLD, join=False, start_method="spawn"
    )
    end = time.monotonic() + TIMEOUT
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > end:
                pytest.fail(f"the processes did not end within {TIMEOUT:.0f} s")
    except torch.multiprocessing.spawn.ProcessException:
        errors = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("error-*.txt")))
        pytest.fail(f"a process failed:\n{errors}")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _process(rank: int, work: Callable[[int], Any], folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=WORLD,
            timeout=datetime.timedelta(seconds=TIMEOUT / 2),
        )
        result = work(rank)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error-{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    torch.save(result, Path(folder) / f"result-{rank}.pt")
