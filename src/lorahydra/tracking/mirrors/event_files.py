"""TensorBoard's event files, in `tensorboard/` of a trial's output folder: `tensorboard --logdir outputs`."""

from __future__ import annotations

from pathlib import Path

# Its other writers need TensorFlow or torch.
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lorahydra.tracking.operations import Operation
from lorahydra.tracking.spool import Header

__all__ = ["EventFiles"]

SHOWN = ("lora.", "training.", "model.name_or_path")
"""Starts of the params that are written: the page has a column for each, and a run has far more."""


class EventFiles:
    """Scalars, and the params of model and training as the hyperparameters of TensorBoard's HParams page."""

    def __init__(self, folder: Path, header: Header) -> None:
        self._run_id = header.run_id
        self._writer = EventFileWriter(str(folder / "tensorboard"))
        self._params: dict[str, str | float] = {}

    def write(self, operation: Operation) -> None:
        """Write metrics as scalars with their steps and times; keep params for the end."""
        if operation["op"] == "metrics":
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in operation["values"].items()]
            seconds = operation["time"] / 1000
            self._writer.add_event(Event(wall_time=seconds, step=operation["step"], summary=Summary(value=scalars)))
            self._writer.flush()
        elif operation["op"] == "params":
            told = {name: text for name, text in operation["values"].items() if name.startswith(SHOWN)}
            self._params |= {name: _number(text) for name, text in told.items()}

    def close(self) -> None:
        """Write the params, which TensorBoard takes once, and close the file."""
        if self._params:
            # A run's group is its own: otherwise runs with equal params would be shown as one.
            summary = hparams_pb(self._params, trial_id=self._run_id)
            self._writer.add_event(Event(summary=summary))
        self._writer.close()


def _number(text: str) -> str | float:
    """Numbers as such: TensorBoard filters them by range."""
    try:
        return float(text)
    except ValueError:
        return text
