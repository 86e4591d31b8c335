"""Segments of a corpus as model-ready batches, gathered by a selection of rows."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from jax_emossl.data.frontend import Frontend
from jax_emossl.data.indices import Sampler, Selection
from jax_emossl.data.prepared import Corpus

Batch = dict[str, np.ndarray]


class Segments:
    """The segments of one or more folds, seen through a frontend.

    Attributes:
      lengths: (S,) model steps of every segment.
      labels: (S, E) intensities.
      recordings: S recording ids.
      reliance: (S,) weight in [0, 1] of the recording's own statistics against the training fold's.
      whole: the segments of which these were taken, or themselves.
      positions: (S,) their places there.
    """

    def __init__(self, corpus: Corpus, folds: Sequence[str], frontend: Frontend):
        parts = [corpus.fold(name) for name in folds]
        self._frontend = frontend
        self._frames = [part.frames for part in parts]
        self._part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self._first = np.concatenate([part.offsets[:-1] for part in parts])
        self._count = np.concatenate([np.diff(part.offsets) for part in parts])
        self.recordings = np.array([r for part in parts for r in part.recordings], object)
        width = max(part.labels.shape[1] for part in parts)
        self.labels = np.concatenate([part.labels if part.labels.shape[1] else np.zeros((len(part), width), np.float32) for part in parts])
        self.lengths = frontend.num_steps(self._count)
        self._extra: dict[str, np.ndarray] = {}
        self.reliance = np.array([corpus.statistics[r].reliance(frontend.prior) for r in self.recordings])
        self._scaling = {r: frontend.location_and_scale(corpus.statistics[r]) for r in set(self.recordings)}
        self.whole = self
        self.positions = np.arange(len(self))

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, positions: Int[np.ndarray, "n"]) -> Segments:
        """Some of the segments, in the order of `positions`."""
        segments = copy.copy(self)
        segments.__dict__.pop("all_steps", None)
        for name in ("_part", "_first", "_count", "recordings", "labels", "lengths", "reliance", "positions"):
            setattr(segments, name, getattr(self, name)[positions])
        segments._extra = {name: array[positions] for name, array in self._extra.items()}
        return segments

    def with_extra(self, extra: dict[str, Float[np.ndarray, "s ..."]]) -> Segments:
        """The same segments, whose batches also hold each segment's rows of `extra`."""
        segments = copy.copy(self)
        segments._extra = extra
        return segments

    def steps(self, segment: int, start: int = 0, length: int | None = None) -> Float[np.ndarray, "t d"]:
        """Model steps of one segment from `start`, at most `length` of them."""
        per_step = self._frontend.frames_per_step
        stop = self._count[segment] if length is None else min(self._count[segment], (start + length) * per_step)
        first = self._first[segment]
        frames = self._frames[self._part[segment]][first + start * per_step : first + stop]
        return self._frontend(frames, *self._scaling[self.recordings[segment]])

    @functools.cached_property
    def all_steps(self) -> Float[np.ndarray, "n d"]:
        """The model steps of all segments, one after another."""
        return np.concatenate([self.steps(i) for i in range(len(self))])

    def gather(self, selection: Selection) -> Batch:
        """The batch of a selection: features (B, T, D), num_frames, labels, weight, segment and any extra (B, ...)."""
        features = np.zeros((len(selection.segments), selection.length, self._frontend.dimension), np.float32)
        for row, segment, start in zip(features, selection.segments, selection.starts, strict=True):
            steps = self.steps(segment, start, selection.length)
            row[: len(steps)] = steps
        return {"features": features, **self.gather_all_but_features(selection)}

    def gather_all_but_features(self, selection: Selection) -> Batch:
        """The batch of a selection without its features, for those who hold them already."""
        segments = selection.segments
        return {
            "num_frames": np.minimum(self.lengths[segments] - selection.starts, selection.length).astype(np.int32),
            "labels": self.labels[segments],
            "weight": selection.weight,
            "segment": segments.astype(np.int32),
            **{name: array[segments] for name, array in self._extra.items()},
        }


def in_memory(segments: Segments, sampler: Sampler, seed: int, start: int, stop: int, process: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
    """The batches of steps start..stop-1, gathered one by one; no TensorFlow needed."""
    for step in range(start, stop):
        yield segments.gather(sampler.indices(seed, step).shard(*process))
