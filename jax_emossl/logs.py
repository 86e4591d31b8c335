"""Scalars of a run, for people (TensorBoard) and programs (`metrics.jsonl`)."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jax_emossl.errors import UserError
from jax_emossl.workdir import write_atomically

METRICS_FILE = "metrics.jsonl"


class Scalars:
    """Appends rows {"step": s, name: value, ...}; on resuming, rows after `resume_step` are written anew."""

    def __init__(self, workdir: Path, resume_step: int):
        self._path = workdir / METRICS_FILE
        # A flipped byte may have made a row no text; it is then no row either.
        rows = self._path.read_text(encoding="utf-8", errors="replace").splitlines() if self._path.exists() else []
        kept = [row for row in rows if _step(row) is not None and _step(row) <= resume_step]
        write_atomically(self._path, "".join(row + "\n" for row in kept))
        self._file = open(self._path, "a", encoding="utf-8")
        # Not SummaryWriter: that keeps two minutes of events in memory, and writes from a thread whose errors nobody sees.
        self._board = EventsWriter(str(workdir / "events"), f".{os.getpid()}")
        if rows:
            hidden = SessionLog(status=SessionLog.START)  # tells TensorBoard to forget the steps from here on
            self._board.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=hidden))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        row = json.dumps({"step": step, **scalars}, allow_nan=False)
        with self._disk():
            self._file.write(row + "\n")
            self._file.flush()
            for name, value in scalars.items():
                self._board.write_event(Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value)))
            self._board.flush()

    def close(self) -> None:
        with self._disk():
            self._file.close()
            self._board.close()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """A disk that is full is one sentence; rows that were cut off are written anew on resuming."""
        try:
            yield
        except OSError as error:
            for file in (self._file, self._board):
                with contextlib.suppress(OSError):
                    file.close()
            raise UserError(
                f"{self._path} cannot be written ({error.strerror}): free some space there and run the same command again."
            ) from error


class Unwritten:
    """The scalars of a process that writes nothing, because another does."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def _step(row: str) -> int | None:
    """Step of a row; None for one cut off by an interruption."""
    try:
        return json.loads(row)["step"]
    except (ValueError, KeyError, TypeError):
        return None
