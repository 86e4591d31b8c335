"""Which frames belong to which interval: the CMU Multimodal SDK's rule, vectorised."""

import math
import warnings

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

# Seconds by which two intervals must overlap: the SDK's `epsilon` (its PyPI release 0.0.6 has 1e-3).
EPSILON = 1e-5
_SAME_HOP = 0.01  # by which hops may differ, relatively
_TOGETHER = 2**22  # values and pairs that are worked on at once


def sort_by_start(
    features: Float[np.ndarray, "n d"], intervals: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n 2"], bool]:
    """Rows in stable order of their start, and whether that moved any."""
    if np.all(intervals[1:, 0] >= intervals[:-1, 0]):
        return features, intervals, False
    order = np.argsort(intervals[:, 0], kind="stable")
    return features[order], intervals[order], True


def hop(intervals: Float[np.ndarray, "n 2"]) -> float:
    """Median seconds from one start to the next, of two intervals or more."""
    return float(np.median(np.diff(intervals[:, 0])))


def is_hop(one: float, other: float) -> bool:
    """Whether two hops are the same but for rounding."""
    return math.isclose(one, other, rel_tol=_SAME_HOP)


def overlapping(frames: Float[np.ndarray, "n 2"], segments: Float[np.ndarray, "s 2"]) -> list[Int[np.ndarray, "k"]]:
    """Per segment the ascending positions of the frames whose interval overlaps it by more than `EPSILON` seconds.

    Both are starts and ends in seconds; frames are sorted by start, their ends in any order, segments in any order and overlapping.
    """
    starts, ends = frames[:, 0], frames[:, 1]
    first, last = _candidates(frames, segments)
    found = []
    for s, (start, end) in enumerate(segments):
        candidates = slice(first[s], last[s])
        overlap = np.minimum(ends[candidates], end) - np.maximum(starts[candidates], start)
        found.append(candidates.start + np.flatnonzero(overlap > EPSILON))
    return found


def _candidates(frames: Float[np.ndarray, "n 2"], segments: Float[np.ndarray, "s 2"]) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "s"]]:
    """Per segment the first and one past the last frame that may overlap it; the rule itself need be applied to those alone."""
    first = np.searchsorted(np.maximum.accumulate(frames[:, 1]), segments[:, 0], side="right")
    return first, np.searchsorted(frames[:, 0], segments[:, 1], side="left")


def onto(frames: Float[np.ndarray, "n 2"], rows: Float[np.ndarray, "m d"], intervals: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n d"]:
    """Over each frame the mean of another file's rows, each weighed by its overlap: short rows are averaged, long ones repeated.

    Rows count where they overlap the frame by more than `EPSILON` seconds, and their finite values alone; NaN without any. `frames` and
    `intervals` are starts and ends in seconds, `intervals` sorted by start.
    """
    first, last = _candidates(intervals, frames)
    number = np.maximum(last - first, 0)
    made = np.empty((len(frames), rows.shape[1]), np.float32)
    for block in np.split(np.arange(len(frames)), np.flatnonzero(np.diff(np.cumsum(number + rows.shape[1]) // _TOGETHER)) + 1):
        until = np.cumsum(number[block])
        frame = np.repeat(np.arange(len(block)), number[block])
        row = np.arange(len(frame)) + np.repeat(first[block] - until + number[block], number[block])
        overlap = np.minimum(intervals[row, 1], frames[block[frame], 1]) - np.maximum(intervals[row, 0], frames[block[frame], 0])
        begin, end = (row.min(), row.max() + 1) if len(row) else (0, 0)
        weights = sparse.csr_array((np.where(overlap > EPSILON, overlap, 0), (frame, row - begin)), (len(block), end - begin))
        known = np.isfinite(rows[begin:end])
        with np.errstate(invalid="ignore"):
            made[block] = weights @ np.where(known, rows[begin:end], 0.0) / (weights @ known.astype(float))
    return made


def take(rows: Float[np.ndarray, "n d"], positions: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k d"]:
    """`rows[positions]` for ascending positions; a view where they follow one another, as frames of a segment mostly do."""
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        return rows[positions[0] : positions[-1] + 1]
    return rows[positions]


def outside(frames: Float[np.ndarray, "n 2"], inside: list[Int[np.ndarray, "k"]]) -> Int[np.ndarray, "m"]:
    """Positions of the frames that none of the segments in `inside` (from `overlapping`) holds."""
    free = np.ones(len(frames), bool)
    for positions in inside:
        free[positions] = False
    return np.flatnonzero(free)


def average(
    frames: Float[np.ndarray, "n d"], intervals: Float[np.ndarray, "n 2"], words: Float[np.ndarray, "w 2"]
) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, "k 2"]]:
    """Mean of the frames in each word (of the finite ones; NaN without any) and the time they cover within it, sorted by start.

    What the SDK's `align` to the words (in any order) gives with an averaging collapse function: words that hold no frame are left
    out, and the others shrink to the first start and the last end of their frames. Frames are sorted by start.
    """
    inside = overlapping(intervals, words)
    kept = [w for w, positions in enumerate(inside) if len(positions)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        means = np.array([np.nanmean(frames[inside[w]], 0) for w in kept], frames.dtype).reshape(len(kept), frames.shape[1])
    covered = [(intervals[inside[w], 0].min(), intervals[inside[w], 1].max()) for w in kept]
    spans = np.clip(np.array(covered, np.float64).reshape(-1, 2), words[kept, :1], words[kept, 1:])
    means, spans, _ = sort_by_start(means, spans)
    return means, spans


def covered_seconds(intervals: Float[np.ndarray, "n 2"]) -> float:
    """Length of the union of intervals, in seconds to the microsecond."""
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    ends = np.maximum.accumulate(intervals[:, 1])
    starts = np.maximum(intervals[:, 0], np.concatenate([[-np.inf], ends[:-1]]))
    return round(float(np.sum(np.maximum(intervals[:, 1] - starts, 0))), 6)
