"""Which segments and crops make the batch at step s: a pure function of (seed, s), NumPy only.

The same selections feed the tf.data pipeline, in-memory training and evaluation.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

SHORTEST = 8  # model steps of the shortest padded length
_TYPICAL = 64  # model steps of a segment, as crops have them
_FINER = 0.5  # power of the growth of padded lengths where several parts are evaluated at once


@dataclasses.dataclass(frozen=True)
class Selection:
    """The rows of one batch.

    Attributes:
      segments: position of each row's segment.
      starts: model step at which each row's crop begins.
      weight: 1, or 0 for filler rows (which repeat a segment).
      length: model steps to which every row is padded or cropped.
    """

    segments: Int[np.ndarray, "b"]
    starts: Int[np.ndarray, "b"]
    weight: Float[np.ndarray, "b"]
    length: int

    def part(self, number: int, of: int) -> Self:
        """The rows of one of so many equal parts, counted from 0."""
        return self.rows(slice(number * len(self.segments) // of, (number + 1) * len(self.segments) // of))

    def rows(self, which: slice | Bool[np.ndarray, "b"]) -> Self:
        """Some of the rows."""
        return dataclasses.replace(self, segments=self.segments[which], starts=self.starts[which], weight=self.weight[which])


@functools.cache
def padded_length(steps: int, growth: float) -> int:
    """The smallest length of the grid SHORTEST, SHORTEST * growth, ... that holds `steps`.

    A coarse grid compiles fewer shapes, a fine one wastes less padding.
    """
    length = SHORTEST
    while length < steps:
        length = max(length + 1, int(length * growth))
    return length


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """Draws batches that cover every segment once an epoch, in a fresh permutation; whole segments are bucketed by length.

    Attributes:
      lengths: model steps of every segment.
      batch_size: rows of every batch; the last of an epoch is filled with rows of weight 0.
      crop: longest piece of a segment, in model steps, at a random place, and longest batch; 0 never crops.
      growth: ratio of successive padded lengths (see `padded_length`).
      recordings: of every segment, as a number; needed where segments of one are to come `together`.
      together: segments of one recording that follow one another in an epoch; what is left of a recording are fewer.
      part: which of how many equal parts of each batch is asked for.
    """

    lengths: Int[np.ndarray, "s"]
    batch_size: int
    crop: int = 0
    growth: float = 1.25
    recordings: Int[np.ndarray, "s"] | None = None
    together: int = 1
    part: tuple[int, int] = (0, 1)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def indices(self, seed: int, step: int) -> Selection:
        """The batch at `step`: a pure function of (seed, step); its cost does not grow with the step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        batches, order = self._epoch(seed, epoch)
        first = order[position] * self.batch_size
        rng = np.random.default_rng((seed, step, 1))
        return self._select(batches[first : first + self.batch_size], rng).part(*self.part)

    @functools.cached_property
    def _epoch(self) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
        """`_drawn` for a seed and an epoch; each sampler keeps its last two, since many may take turns."""
        return functools.lru_cache(maxsize=2)(self._drawn)

    def _drawn(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments in the order in which an epoch's batches hold them, and the order of the batches."""
        rng = np.random.default_rng((seed, epoch, 0))
        shuffled, order = rng.permutation(len(self.lengths)), rng.permutation(self.steps_per_epoch)
        if self.together > 1:
            shuffled = shuffled[_beside_one_another(self.recordings[shuffled], self.together)]
        if self.crop:
            return shuffled, order
        bucket = np.array([padded_length(int(length), self.growth) for length in self.lengths[shuffled]])
        # Longest first, so that the filler rows of the last batch are short.
        return shuffled[np.argsort(-bucket, kind="stable")], order

    def _select(self, segments: Int[np.ndarray, "b"], rng: np.random.Generator) -> Selection:
        missing = self.batch_size - len(segments)
        weight = np.concatenate([np.ones(len(segments), np.float32), np.zeros(missing, np.float32)])
        segments = np.concatenate([segments, np.repeat(segments[:1], missing)])
        lengths = self.lengths[segments]
        length = padded_length(int(lengths.max()), self.growth)
        if not self.crop:
            return Selection(segments, np.zeros_like(segments), weight, length)
        starts = rng.integers(0, np.maximum(lengths - self.crop, 0) + 1)
        return Selection(segments, starts, weight, min(length, self.crop))


def _beside_one_another(recordings: Int[np.ndarray, "s"], together: int) -> Int[np.ndarray, "s"]:
    """An order in which so many of a recording's segments follow the first of them; the first ones keep their order."""
    by_recording = np.argsort(recordings, kind="stable")
    _, count = np.unique(recordings, return_counts=True)
    place = np.arange(len(recordings)) - np.repeat(np.cumsum(count) - count, count)  # within the recording
    first = by_recording[np.arange(len(recordings)) - place % together]
    return by_recording[np.argsort(first, kind="stable")]


def in_order(lengths: Sequence[Int[np.ndarray, "s"]], batch_size: int, growth: float, devices: int = 1) -> Iterator[list[Selection]]:
    """Every segment of several parts once and uncropped, longest first: for evaluation.

    Each turn has one selection of every part, all of one shape. Its area is that of `batch_size` rows of `_TYPICAL` steps, so that long
    segments take no more memory than short ones. Of several parts, lengths are padded to a finer grid: what that spares is spared of each,
    and every length is a program to compile.

    Args:
      lengths: model steps of every segment of each part.
      devices: of which the number of rows is a multiple.
    """
    left = [np.argsort(-own, kind="stable") for own in lengths]
    while any(map(len, left)):
        longest = max(int(own[rest[0]]) for own, rest in zip(lengths, left, strict=True) if len(rest))
        length = padded_length(longest, growth if len(lengths) == 1 else growth**_FINER)
        rows = devices * max(1, batch_size * _TYPICAL // (length * devices))
        yield [_filled(rest[:rows], rows, length) for rest in left]
        left = [rest[rows:] for rest in left]


def _filled(segments: Int[np.ndarray, "n"], rows: int, length: int) -> Selection:
    """So many rows, the missing ones fillers."""
    weight = (np.arange(rows) < len(segments)).astype(np.float32)
    filler = segments[:1] if len(segments) else np.zeros(1, int)
    return Selection(np.concatenate([segments, np.repeat(filler, rows - len(segments))]), np.zeros(rows, int), weight, length)
