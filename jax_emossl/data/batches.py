"""Segments of a corpus as model-ready batches, gathered by a selection of rows."""

import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from jax_emossl.data import functionals, normalisation
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.indices import Sampler, Selection
from jax_emossl.data.prepared import UNLABELLED, Corpus
from jax_emossl.data.statistics import Statistics, voiced_frames
from jax_emossl.errors import UserError
from jax_emossl.memory import Rows

Batch = dict[str, np.ndarray]


class Segments:
    """The segments of one or more folds, seen through a frontend.

    Attributes:
      lengths: (S,) model steps of every segment.
      labels: (S, E) intensities.
      recordings: (S,) what each is counted under: its recording's id, or where the corpus knows them its speaker's.
      recording: (S,) their places among all those of the corpora, the same in every fold.
      enrolled: (S,) whether they serve as enrolment, by which others of their recording are normalised.
      basis: (S, 3) on which segments what the head reads of each is standardised, see `normalisation.basis`.
      whole: the segments of which these were taken, or themselves.
      positions: (S,) their places there.
      with_functionals: whether batches hold the segments' functionals.
    """

    def __init__(self, corpus: Corpus, folds: Sequence[str], frontend: Frontend, with_functionals: bool = False):
        parts = [corpus.fold(name) for name in folds]
        self._frontend, self.with_functionals = frontend, with_functionals
        self._frames = [Rows(part.frames) for part in parts]
        self._part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self._first = np.concatenate([part.offsets[:-1] for part in parts])
        self._count = np.concatenate([np.diff(part.offsets) for part in parts])
        width = max(part.labels.shape[1] for part in parts)
        self.labels = np.concatenate([part.labels if part.labels.shape[1] else np.zeros((len(part), width), np.float32) for part in parts])
        self.lengths = frontend.num_steps(self._count)
        recordings = np.array([r for part in parts for r in part.recordings], str)
        self.recordings = np.array(corpus.units(recordings), str)
        self.recording = np.searchsorted(corpus.all_units, self.recordings).astype(np.int32)
        self.num_recordings = len(corpus.all_units)
        self.whole = self
        self.positions = np.arange(len(self))
        if frontend.by == normalisation.NEUTRAL and not corpus.emotions:
            raise UserError(f"data.normalise_by is neutral, but {corpus.name} has no labels: give enrolment, or another.")
        labelled = np.flatnonzero(np.repeat([name != UNLABELLED for name in folds], [len(part) for part in parts]))
        self.enrolled = np.zeros(len(self), bool)
        self.enrolled[labelled] = normalisation.enrolled(frontend.by, self.recordings[labelled], self.labels[labelled], frontend.enrolment)
        intervals = np.concatenate([part.intervals for part in parts])
        within = recordings if frontend.by == normalisation.CAUSAL else self.recordings  # the times of two recordings have no order
        self.basis = normalisation.basis(frontend.by, within, intervals, self.enrolled)
        self._scaled_by, statistics = self._statistics(corpus, recordings, intervals)
        scaling = np.array([frontend.location_and_scale(own) for own in statistics], np.float32)
        self._location, self._scale = np.moveaxis(scaling.reshape(-1, 2, len(corpus.features)), 1, 0)

    def _statistics(
        self, corpus: Corpus, recordings: np.ndarray, intervals: Float[np.ndarray, "s 2"]
    ) -> tuple[Int[np.ndarray, "s"], list[Statistics]]:
        """What normalises the features of each segment: its place among statistics, and these."""
        if self._frontend.by in (normalisation.RECORDING, normalisation.NONE):
            names, places = np.unique(recordings, return_inverse=True)
            return places, [corpus.statistics[name] for name in names]

        def of_frames(segments: Int[np.ndarray, "n"]) -> Statistics:
            own = np.unique(recordings[segments])
            if len(own) > 1:  # of one speaker; what of their times overlaps is no time less
                return Statistics.pooled([of_frames(segments[recordings[segments] == name]) for name in own])
            frames = np.concatenate([np.zeros((0, len(corpus.features)), np.float32), *map(self._raw, segments)])
            return Statistics.of(frames, intervals[segments], voiced_frames(frames, corpus.features))

        return normalisation.by_segments(self._frontend.by, self.basis, intervals, of_frames)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The segments of several corpora, one after another, without labels or enrolment; each keeps its own normalisation."""
        if len(parts) == 1:
            return parts[0]
        joined = copy.copy(parts[0])
        first_part = np.cumsum([0, *(len(part._frames) for part in parts)])
        first_scaling = np.cumsum([0, *(len(part._location) for part in parts)])
        joined._frames = [frames for part in parts for frames in part._frames]
        joined._part = np.concatenate([part._part + first for part, first in zip(parts, first_part, strict=False)])
        first_recording = np.cumsum([0, *(part.num_recordings for part in parts)]).astype(np.int32)
        joined.recording = np.concatenate([part.recording + first for part, first in zip(parts, first_recording, strict=False)])
        joined.num_recordings = int(first_recording[-1])
        joined._scaled_by = np.concatenate([part._scaled_by + first for part, first in zip(parts, first_scaling, strict=False)])
        for name in ("_first", "_count", "_location", "_scale", "lengths", "recordings"):
            setattr(joined, name, np.concatenate([getattr(part, name) for part in parts]))
        joined.labels, joined.enrolled = np.zeros((len(joined), 0), np.float32), np.zeros(len(joined), bool)
        first_segment = np.cumsum([0, *map(len, parts)]).astype(np.int32)
        own = [np.where(part.basis < 0, -1, part.basis + first) for part, first in zip(parts, first_segment, strict=False)]
        joined.basis = np.concatenate(own)
        joined.__dict__.pop("functionals_of_whole", None)  # those of the first part alone
        joined.whole, joined.positions = joined, np.arange(len(joined))
        return joined

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def dimension(self) -> int:
        """Width of a model step."""
        return self._frontend.dimension

    def take(self, positions: Int[np.ndarray, "n"]) -> Self:
        """Some of the segments, in the order of `positions`."""
        segments = copy.copy(self)
        for name in (
            "_part",
            "_first",
            "_count",
            "_scaled_by",
            "recordings",
            "recording",
            "labels",
            "lengths",
            "positions",
            "enrolled",
            "basis",
        ):
            setattr(segments, name, getattr(self, name)[positions])
        return segments

    def with_basis(self) -> Self:
        """These and, after them, the others on which they are standardised: of a part of a fold, those of its recordings that it lacks."""
        resting = self.basis[:, 2] > self.basis[:, 1]
        others = (self.whole.basis[:, 0] >= 0) & np.isin(self.whole.basis[:, 1], self.basis[resting, 1])
        others[self.positions] = False
        return self.whole.take(np.concatenate([self.positions, np.flatnonzero(others)])) if others.any() else self

    def steps(self, segment: int, start: int = 0, length: int | None = None) -> Float[np.ndarray, "t d"]:
        """Model steps of one segment from `start`, at most `length` of them."""
        left = int(self.lengths[segment]) - start
        return self._features(Selection(np.array([segment]), np.array([start]), np.ones(1), min(left, length or left)))[0]

    def _raw(self, segment: int) -> Float[np.ndarray, "n f"]:
        """Its frames as they were prepared."""
        first = self._first[segment]
        return self._frames[self._part[segment]][first : first + self._count[segment]]

    @property
    def functionals(self) -> Float[np.ndarray, "s q"]:
        """Of every whole segment's frames as the frontend normalises them, neither pooled nor stacked."""
        return self.whole.functionals_of_whole[self.positions]

    @functools.cached_property
    def functionals_of_whole(self) -> Float[np.ndarray, "s q"]:
        """Made once, when a fold's first batch or vectors ask for them."""
        frontend = dataclasses.replace(self._frontend, pool=1, stack=1)
        made = np.empty((len(self), functionals.number(len(frontend.names))), np.float32)
        for i, (place, count) in enumerate(zip(self._scaled_by, self._count, strict=True)):
            frames = frontend(self._raw(i), self._location[place], self._scale[place])
            made[i] = functionals.of_segments(frames[None], np.array([count]))[0]
        return made

    def gather(self, selection: Selection) -> Batch:
        """The batch of a selection: features (B, T, D) and all that `gather_all_but_features` gives."""
        return {"features": self._features(selection), **self.gather_all_but_features(selection)}

    def _features(self, selection: Selection) -> Float[np.ndarray, "b t d"]:
        per_step, scaled_by = self._frontend.frames_per_step, self._scaled_by[selection.segments]
        skipped, number = selection.starts * per_step, selection.length * per_step
        first = self._first[selection.segments] + skipped
        counts = np.minimum(self._count[selection.segments] - skipped, number)
        frames = np.zeros((len(first), number, self._location.shape[1]), np.float32)
        for row, part, begin, count in zip(frames, self._part[selection.segments], first, counts, strict=True):
            row[:count] = self._frames[part][begin : begin + count]
        return self._frontend(frames, self._location[scaled_by], self._scale[scaled_by], counts)

    def gather_all_but_features(self, selection: Selection) -> Batch:
        """All per row: numbers of steps, and of the pooled frames in them; labels, weight, segment, recording, basis; functionals if asked for."""
        segments, frontend = selection.segments, self._frontend
        frames = self._count[segments] - selection.starts * frontend.frames_per_step
        own = {"functionals": self.whole.functionals_of_whole[self.positions[segments]]} if self.with_functionals else {}
        return {
            "num_steps": np.minimum(self.lengths[segments] - selection.starts, selection.length).astype(np.int32),
            "num_frames": np.minimum(-(-frames // frontend.pool), selection.length * frontend.stack).astype(np.int32),
            "labels": self.labels[segments],
            "weight": selection.weight,
            "segment": segments.astype(np.int32),
            "recording": self.recording[segments],
            "basis": self.basis[segments],
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
