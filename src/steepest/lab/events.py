"""TensorBoard as a sink: what a run logs, as events, while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steepest.lab.errors import UserError

FOLDER = "events"  # of a run
_FLUSH = 10  # seconds after which an event is on the disk


def writer_type() -> Any:
    """`SummaryWriter`.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "TensorBoard is not installed: pip install 'steepest[tensorboard]'. A run does without when "
            "tensorboard=true is left out; `steepest export --format tensorboard` makes the same events later."
        ) from None
    return SummaryWriter


class Events:
    """The events of a run.

    Args:
        folder: of the events.
        step: the step of the checkpoint from which the run goes on; TensorBoard forgets what came after it.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._writer = writer_type()(str(folder), purge_step=step + 1 if step else None, flush_secs=_FLUSH)

    def write(self, prefix: str, row: Mapping[str, Any]) -> None:
        """Write the numbers of a logged line, "train/lr.muon"; what is not finite in it is not there."""
        self._write(f"{prefix}/", {key: value for key, value in row.items() if key != "step"}, row["step"])

    def _write(self, prefix: str, row: Mapping[str, Any], step: int) -> None:
        for key, value in row.items():
            if isinstance(value, Mapping):
                self._write(f"{prefix}{key}.", value, step)
            elif isinstance(value, int | float):
                self._writer.add_scalar(f"{prefix}{key}", value, step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
