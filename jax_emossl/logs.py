"""Scalars of a run, for people (TensorBoard) and programs (`metrics.jsonl`)."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class Scalars:
    """Appends rows {"step": s, name: value, ...}; on resuming, rows after `resume_step` are written anew."""

    def __init__(self, workdir: Path, resume_step: int):
        path = workdir / METRICS_FILE
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [row for row in rows if _step(row) is not None and _step(row) <= resume_step]
        path.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
        self._file = open(path, "a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir), purge_step=resume_step + 1 if rows else None)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **scalars}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _step(row: str) -> int | None:
    """Step of a row; None for one cut off by an interruption."""
    try:
        return json.loads(row)["step"]
    except (ValueError, KeyError, TypeError):
        return None
