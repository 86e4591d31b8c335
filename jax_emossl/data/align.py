"""Which frames belong to which interval: the CMU Multimodal SDK's rule, vectorised."""

import warnings

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
    """Per segment the ascending positions of the frames whose interval overlaps it by more than `EPSILON` seconds.

    Both are starts and ends in seconds; frames are sorted by start, their ends in any order, segments in any order and overlapping.
    """
    starts, ends = frames[:, 0], frames[:, 1]
    # Two binary searches bound the candidates; the rule itself is then applied to those alone.
    first = np.searchsorted(np.maximum.accumulate(ends), segments[:, 0], side="right")
    last = np.searchsorted(starts, segments[:, 1], side="left")
    found = []
    for s, (start, end) in enumerate(segments):
        candidates = slice(first[s], last[s])
        overlap = np.minimum(ends[candidates], end) - np.maximum(starts[candidates], start)
        found.append(candidates.start + np.flatnonzero(overlap > EPSILON))
    return found


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
    """Length of the union of intervals sorted by start, in seconds to the microsecond."""
    ends = np.maximum.accumulate(intervals[:, 1])
    starts = np.maximum(intervals[:, 0], np.concatenate([[-np.inf], ends[:-1]]))
    return round(float(np.sum(np.maximum(intervals[:, 1] - starts, 0))), 6)
