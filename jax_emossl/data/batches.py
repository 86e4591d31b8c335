"""Segments of a corpus as model-ready batches, gathered by a selection of rows."""

import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int

from jax_emossl.data import functionals
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.indices import Sampler, Selection
from jax_emossl.data.prepared import Corpus

Batch = dict[str, np.ndarray]


class Recordings(NamedTuple):
    """Which recording each of S segments is of, among the R of a corpus.

    Attributes:
      place: (S,) of the segment's recording.
      reliance: (R,) weight in [0, 1] of every recording's own statistics against the training fold's.
    """

    place: Int[np.ndarray, "s"]
    reliance: Float[np.ndarray, "r"]


class Segments:
    """The segments of one or more folds, seen through a frontend.

    Attributes:
      lengths: (S,) model steps of every segment.
      labels: (S, E) intensities.
      recordings: (S,) recording ids.
      by_recording: the same as places among all recordings of the corpus, in sorted order.
      whole: the segments of which these were taken, or themselves.
      positions: (S,) their places there.
      with_functionals: whether batches hold the segments' functionals.
    """

    def __init__(self, corpus: Corpus, folds: Sequence[str], frontend: Frontend, with_functionals: bool = False):
        parts = [corpus.fold(name) for name in folds]
        self._frontend, self.with_functionals = frontend, with_functionals
        self._frames = [part.frames for part in parts]
        self._part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self._first = np.concatenate([part.offsets[:-1] for part in parts])
        self._count = np.concatenate([np.diff(part.offsets) for part in parts])
        width = max(part.labels.shape[1] for part in parts)
        self.labels = np.concatenate([part.labels if part.labels.shape[1] else np.zeros((len(part), width), np.float32) for part in parts])
        self.lengths = frontend.num_steps(self._count)
        names = corpus.recordings
        self.recordings = np.array([r for part in parts for r in part.recordings], str)
        self._recording = np.searchsorted(names, self.recordings).astype(np.int32)
        self._reliance = np.array([corpus.statistics[r].reliance(frontend.prior) for r in names], np.float32)
        self._scaling = {r: frontend.location_and_scale(corpus.statistics[names[r]]) for r in np.unique(self._recording)}
        self.whole = self
        self.positions = np.arange(len(self))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The segments of several corpora, one after another, without labels; each keeps its own normalisation."""
        if len(parts) == 1:
            return parts[0]
        joined = copy.copy(parts[0])
        first_part = np.cumsum([0, *(len(part._frames) for part in parts)])
        first_recording = np.cumsum([0, *(len(part._reliance) for part in parts)]).astype(np.int32)
        joined._frames = [frames for part in parts for frames in part._frames]
        joined._part = np.concatenate([part._part + first for part, first in zip(parts, first_part, strict=False)])
        joined._recording = np.concatenate([part._recording + first for part, first in zip(parts, first_recording, strict=False)])
        joined._scaling = {r + first: own for part, first in zip(parts, first_recording, strict=False) for r, own in part._scaling.items()}
        for name in ("_first", "_count", "_reliance", "lengths", "recordings"):
            setattr(joined, name, np.concatenate([getattr(part, name) for part in parts]))
        joined.labels = np.zeros((len(joined), 0), np.float32)
        joined.__dict__.pop("functionals_of_whole", None)  # those of the first part alone
        joined.whole, joined.positions = joined, np.arange(len(joined))
        return joined

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def by_recording(self) -> Recordings:
        return Recordings(self._recording, self._reliance)

    def take(self, positions: Int[np.ndarray, "n"]) -> Self:
        """Some of the segments, in the order of `positions`."""
        segments = copy.copy(self)
        for name in ("_part", "_first", "_count", "recordings", "_recording", "labels", "lengths", "positions"):
            setattr(segments, name, getattr(self, name)[positions])
        return segments

    def steps(self, segment: int, start: int = 0, length: int | None = None) -> Float[np.ndarray, "t d"]:
        """Model steps of one segment from `start`, at most `length` of them."""
        per_step = self._frontend.frames_per_step
        stop = self._count[segment] if length is None else min(self._count[segment], (start + length) * per_step)
        first = self._first[segment]
        frames = self._frames[self._part[segment]][first + start * per_step : first + stop]
        return self._frontend(frames, *self._scaling[self._recording[segment]])

    @property
    def functionals(self) -> Float[np.ndarray, "s q"]:
        """Of every whole segment's frames as the frontend normalises them, neither pooled nor stacked."""
        return self.whole.functionals_of_whole[self.positions]

    @functools.cached_property
    def functionals_of_whole(self) -> Float[np.ndarray, "s q"]:
        """Made once, when a fold's first batch or vectors ask for them."""
        frontend = dataclasses.replace(self._frontend, pool=1, stack=1)
        made = np.empty((len(self), functionals.number(len(frontend.names))), np.float32)
        for i, (part, first, count) in enumerate(zip(self._part, self._first, self._count, strict=True)):
            frames = frontend(self._frames[part][first : first + count], *self._scaling[self._recording[i]])
            made[i] = functionals.of_segments(frames[None], np.array([count]))[0]
        return made

    def gather(self, selection: Selection) -> Batch:
        """The batch of a selection: features (B, T, D) and all that `gather_all_but_features` gives."""
        features = np.zeros((len(selection.segments), selection.length, self._frontend.dimension), np.float32)
        for row, segment, start in zip(features, selection.segments, selection.starts, strict=True):
            steps = self.steps(segment, start, selection.length)
            row[: len(steps)] = steps
        return {"features": features, **self.gather_all_but_features(selection)}

    def gather_all_but_features(self, selection: Selection) -> Batch:
        """All per row: numbers of steps, and of the pooled frames in them; labels, weight, segment, recording; functionals if asked for."""
        segments, frontend = selection.segments, self._frontend
        frames = self._count[segments] - selection.starts * frontend.frames_per_step
        own = {"functionals": self.whole.functionals_of_whole[self.positions[segments]]} if self.with_functionals else {}
        return {
            "num_steps": np.minimum(self.lengths[segments] - selection.starts, selection.length).astype(np.int32),
            "num_frames": np.minimum(-(-frames // frontend.pool), selection.length * frontend.stack).astype(np.int32),
            "labels": self.labels[segments],
            "weight": selection.weight,
            "segment": segments.astype(np.int32),
            "recording": self._recording[segments],
            **own,
        }


def example(frontend: Frontend) -> Batch:
    """All of a batch that parameters can depend on: one row of two steps."""
    features = np.zeros((1, 2, frontend.dimension), np.float32)
    own = np.zeros((1, functionals.number(len(frontend.names))), np.float32)
    return {"features": features, "num_steps": np.full(1, 2, np.int32), "functionals": own}


def in_memory(segments: Segments, sampler: Sampler, seed: int, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps start..stop-1, gathered one by one; no TensorFlow needed."""
    for step in range(start, stop):
        yield segments.gather(sampler.indices(seed, step))
