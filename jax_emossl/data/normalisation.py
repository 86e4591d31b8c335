"""By what of its recording a segment is normalised (`config.data.normalise_by`): its features by frames, what the head reads by segments.

recording   by all of the recording: transductive, since a test recording is known beforehand
enrolment   by some of its segments, drawn by its name, which are not scored
neutral     by some of its neutral segments, likewise
causal      by its segments that ended before this one began; the features by this one's frames, too
none        by the training fold alone

Where a corpus knows its speakers, all recordings of one are a recording here; but for `causal`, since time orders one recording alone.
"""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_emossl.data.align import covered_seconds
from jax_emossl.data.statistics import Statistics

RECORDING, ENROLMENT, NEUTRAL, CAUSAL, NONE = MODES = ("recording", "enrolment", "neutral", "causal", "none")
_SIMULTANEOUS = 1e-6  # s by which a segment may begin before another has ended


def words(by: str, fold: str, *priors: float, unit: str = "recording") -> str:
    """What a reader of results on a `fold` must know, to follow "normalised"; infinite `priors` alone leave the training fold.

    `unit` is what the corpus counts as one (`Corpus.unit`).
    """
    fold = {"valid": "validation"}.get(fold, fold)
    drawn = f"of each {unit}, {fold} {unit}s too, which are not scored"
    return {
        RECORDING: f"with each {unit}'s own frames and segments, {fold} {unit}s too (transductive)",
        ENROLMENT: f"with some segments {drawn}",
        NEUTRAL: f"with some neutral segments {drawn}",
        CAUSAL: "with what came before a segment in its recording (causal)",
        NONE: "by the training fold alone",
    }[by if min(priors) < math.inf else NONE]


def enrolled(by: str, recordings: Sequence[str], labels: Float[np.ndarray, "s e"], number: int) -> Bool[np.ndarray, "s"]:
    """Which labelled segments serve as enrolment: of each recording at most `number`, drawn by its name, and never all it has."""
    chosen = np.zeros(len(labels), bool)
    if by in (ENROLMENT, NEUTRAL):
        able = ~labels.any(1) if by == NEUTRAL else np.ones(len(labels), bool)
        for name, own in _of_each(np.asarray(recordings)):
            drawn = np.random.default_rng(zlib.crc32(name.encode())).permutation(own[able[own]])
            chosen[drawn[: min(number, len(own) - 1)]] = True
    return chosen


def basis(
    by: str, recordings: Sequence[str], intervals: Float[np.ndarray, "s 2"], enrolled: Bool[np.ndarray, "s"]
) -> Int[np.ndarray, "s 3"]:
    """Per segment its `order`, and `first` and `until`: it is normalised by the segments whose order lies in [first, until).

    Segments are ordered by recording and end; one by which no other is normalised has the order -1. `first` is the recording's.
    """
    made = np.empty((len(intervals), 3), np.int32)
    first = 0
    for _, own in _of_each(np.asarray(recordings)):
        own = own[np.argsort(intervals[own, 1], kind="stable")]
        made[own, 0] = np.arange(first, first + len(own))
        made[own, 1] = first
        ended = np.searchsorted(intervals[own, 1], intervals[own, 0] + _SIMULTANEOUS, side="right")
        made[own, 2] = first + {NONE: 0, CAUSAL: ended}.get(by, len(own))
        first += len(own)
    if by in (ENROLMENT, NEUTRAL):
        made[~enrolled, 0] = -1
    return made


def by_segments(
    by: str, basis: Int[np.ndarray, "s 3"], intervals: Float[np.ndarray, "s 2"], of_frames: Callable[[Int[np.ndarray, "n"]], Statistics]
) -> tuple[Int[np.ndarray, "s"], list[Statistics]]:
    """What normalises the features of each segment: its place among statistics, and these; `of_frames` gives those of some segments.

    Segments that overlap, as windows do, are no more time than they cover.
    """
    places, made = np.empty(len(basis), int), []
    for _, own in _of_each(basis[:, 1]):
        own = own[np.argsort(basis[own, 0])]
        if by == CAUSAL:
            parts = [of_frames(own[i : i + 1]) for i in range(len(own))]
            seconds = [covered_seconds(intervals[own[: i + 1]]) for i in range(len(own))]
            pooled = itertools.accumulate(parts, lambda one, other: Statistics.pooled([one, other]))
            so_far = [dataclasses.replace(one, seconds=covered) for one, covered in zip(pooled, seconds, strict=True)]
            number = basis[own, 2] - basis[own, 1]
            places[own] = len(made) + np.arange(len(own))
            made += [Statistics.pooled([*so_far[max(0, n - 1) : n], part]) for n, part in zip(number, parts, strict=True)]
        else:
            places[own] = len(made)
            made.append(of_frames(own[basis[own, 0] >= 0]))
    return places, made


def _of_each(keys: np.ndarray) -> list[tuple]:
    """Every value with the positions at which it stands, ascending."""
    order = np.argsort(keys, kind="stable")
    values, first = np.unique(keys[order], return_index=True)
    return [(value, order[start:stop]) for value, start, stop in zip(values.tolist(), first, [*first[1:], len(order)], strict=False)]
