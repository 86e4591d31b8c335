"""Which frames belong to which interval: the CMU Multimodal SDK's rule, vectorised."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

# Seconds by which two intervals must overlap: the SDK's `epsilon` (its PyPI release 0.0.6 has 1e-3).
EPSILON = 1e-5


def sort_by_start(
    features: Float[np.ndarray, "n d"], intervals: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n 2"], bool]:
    """Rows in stable order of their start, and whether that moved any."""
    if np.all(intervals[1:, 0] >= intervals[:-1, 0]):
        return features, intervals, False
    order = np.argsort(intervals[:, 0], kind="stable")
    return features[order], intervals[order], True


def overlapping(frames: Float[np.ndarray, "n 2"], segments: Float[np.ndarray, "s 2"]) -> list[Int[np.ndarray, "k"]]:
    """For each segment, the frames whose interval overlaps it by more than `EPSILON` seconds.

    Args:
      frames: start and end in seconds, sorted by start; ends may be in any order.
      segments: start and end in seconds, in any order; they may overlap one another.

    Returns:
      One array of ascending frame positions per segment, possibly empty.
    """
    starts, ends = frames[:, 0], frames[:, 1]
    # Two binary searches bound the candidates; the rule itself is then applied to those alone.
    first = np.searchsorted(np.maximum.accumulate(ends), segments[:, 0], side="right") if len(ends) else None
    last = np.searchsorted(starts, segments[:, 1], side="left")
    found = []
    for s, (start, end) in enumerate(segments):
        candidates = slice(first[s], last[s]) if first is not None else slice(0, 0)
        overlap = np.minimum(ends[candidates], end) - np.maximum(starts[candidates], start)
        found.append(candidates.start + np.flatnonzero(overlap > EPSILON))
    return found


def outside(frames: Float[np.ndarray, "n 2"], inside: list[Int[np.ndarray, "k"]]) -> Int[np.ndarray, "m"]:
    """Positions of the frames that none of the segments in `inside` (from `overlapping`) holds."""
    free = np.ones(len(frames), bool)
    for positions in inside:
        free[positions] = False
    return np.flatnonzero(free)


def average(
    frames: Float[np.ndarray, "n d"], inside: list[Int[np.ndarray, "k"]]
) -> tuple[Float[np.ndarray, "w d"], Int[np.ndarray, "w"]]:
    """Mean of the frames in each word, and the positions of the words that hold any frame."""
    kept = np.array([w for w, positions in enumerate(inside) if len(positions)], np.int64)
    means = [frames[inside[w]].mean(0) for w in kept]
    return np.array(means, frames.dtype).reshape(len(kept), frames.shape[1]), kept
