"""Small `.csd` corpora for the tests of the data path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jax_emossl.data import csd

EMOTIONS = ["joy", "gloom"]
FEATURES = ["F0", "VUV", "energy"]
FOLDS = {"train": ["rec_a", "rec_b"], "valid": ["rec_c"], "test": ["rec_d"]}
Entries = Mapping[str, tuple[np.ndarray, np.ndarray]]


def grid(number: int, hop: float = 0.01) -> np.ndarray:
    """Intervals of consecutive frames, in seconds."""
    times = np.arange(number + 1) * hop
    return np.column_stack([times[:-1], times[1:]])


def recording(seed: int, number: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """`number` frames of the three FEATURES at 100 Hz, with their intervals."""
    rng = np.random.default_rng(seed)
    frames = rng.normal(size=(number, 3)).astype(np.float32)
    frames[:, 1] = rng.random(number) > 0.4
    frames[:, 0] = np.where(frames[:, 1] > 0, rng.uniform(80, 250, number), 0)
    return frames, grid(number)


def segments(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three labelled segments of 1 s, from 0, 1.5 and 3 s on."""
    labels = np.random.default_rng(seed).integers(0, 4, size=(3, 2)).astype(np.float32)
    starts = np.array([0.0, 1.5, 3.0])
    return labels, np.column_stack([starts, starts + 1])


class Files:
    """The files of a corpus in a folder; every method writes one of them anew."""

    def __init__(self, folder: Path):
        self.features, self.labels = folder / "F.csd", folder / "L.csd"
        self.words, self.folds, self.out = folder / "W.csd", folder / "folds.json", folder / "out" / "prepared"
        self.entries = {r: recording(i) for i, r in enumerate("rec_" + c for c in "abcd")}
        self.label_entries = {r: segments(i) for i, r in enumerate(self.entries)}
        self.write_features()
        self.write_labels()
        self.write_folds(FOLDS)

    def write_features(self, changed: Entries = {}, names: list[str] | None = FEATURES, **metadata) -> None:  # noqa: B006
        self._write(self.features, "acoustic", {**self.entries, **changed}, names, metadata)

    def write_labels(self, changed: Entries = {}, names: list[str] | None = EMOTIONS) -> None:  # noqa: B006
        self._write(self.labels, "All Labels", {**self.label_entries, **changed}, names, {})

    def write_words(self, intervals: Mapping[str, np.ndarray]) -> None:
        """Words as CMU distributes them: their features are text."""
        entries = {r: (np.full((len(spans), 1), b"word"), spans) for r, spans in intervals.items()}
        self._write(self.words, "words", entries, None, {})

    def write_folds(self, folds: object) -> None:
        self.folds.write_text(json.dumps(folds))

    def _write(self, path: Path, root: str, entries: Entries, names: list[str] | None, metadata: dict) -> None:
        if names:
            metadata = {"dimension names": names, **metadata}
        csd.write(path, root, ((r, *values) for r, values in entries.items()), metadata)

    @property
    def arguments(self) -> list[str]:
        """Of `prepare`, on the command line."""
        names = ("features", "labels", "folds", "out")
        return [word for name in names for word in (f"--{name}", str(getattr(self, name)))]
