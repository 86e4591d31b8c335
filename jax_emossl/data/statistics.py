"""Normalisation statistics of recordings, and their shrinkage toward the training fold's."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Bool, Float

from jax_emossl.data.align import covered_seconds


def voiced_frames(frames: Float[np.ndarray, "n f"], names: Sequence[str]) -> Bool[np.ndarray, "n f"] | None:
    """Which values count in the statistics: all but F0 of unvoiced frames, or words; None where there is no F0.

    Voiced is COVAREP's VUV above 0.5 (of a word: in most of its frames) or, without that dimension, F0 above 0 (openSMILE's convention).
    """
    pitch = [i for i, name in enumerate(names) if name.startswith("F0")]
    if not pitch:
        return None
    counts = np.ones(frames.shape, bool)
    for i in pitch:
        counts[:, i] = frames[:, names.index("VUV")] > 0.5 if "VUV" in names else frames[:, i] > 0
    return counts


def mark(frames: Float[np.ndarray, "n f"]) -> int:
    """Makes every value that is not finite a NaN; returns how many there are. A frontend reads them as the mean that it subtracts."""
    broken = ~np.isfinite(frames)
    np.copyto(frames, np.nan, where=broken)
    return int(broken.sum())


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and variance per dimension (NaN where no value counted) over `seconds` of frames.

    `count` is the number of values behind each; only pooling needs it, and it is not stored.
    """

    mean: Float[np.ndarray, "f"]
    variance: Float[np.ndarray, "f"]
    seconds: float
    count: Float[np.ndarray, "f"] | None = None

    @classmethod
    def of(
        cls, frames: Float[np.ndarray, "n f"], intervals: Float[np.ndarray, "n 2"], counts: Bool[np.ndarray, "n f"] | None = None
    ) -> Self:
        """Statistics of one recording over its finite values, restricted to those in `counts` if given.

        `intervals`, in seconds, may overlap one another: `seconds` is the time they cover.
        """
        counted = np.isfinite(frames) if counts is None else np.isfinite(frames) & counts
        number = counted.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.sum(frames, 0, dtype=np.float64, where=counted) / number
            deviation = np.where(counted, frames - mean, 0.0)
            variance = np.einsum("nf,nf->f", deviation, deviation) / number
        return cls(mean, variance, covered_seconds(intervals), number.astype(np.float64))

    @classmethod
    def pooled(cls, parts: Sequence[Self]) -> Self:
        """Statistics of all the parts' values together."""
        number = np.array([p.count for p in parts])
        mean = np.array([np.nan_to_num(p.mean) for p in parts])
        variance = np.array([np.nan_to_num(p.variance) for p in parts])
        total = number.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            overall = (number * mean).sum(0) / total
            spread = (number * (variance + (mean - overall) ** 2)).sum(0) / total
        return cls(overall, spread, sum(p.seconds for p in parts), total)

    def reliance(self, prior: float) -> float:
        """The weight n / (n + prior) of these statistics, n being `seconds`; 0 for an infinite prior."""
        return 0.0 if np.isinf(prior) else self.seconds / max(self.seconds + prior, np.finfo(float).tiny)

    def shrunk(self, toward: Self, prior: float) -> Self:
        """Mean and variance each weighted n / (n + prior) against `toward`'s, n being `seconds`.

        A prior of 0 keeps these, infinity takes `toward`'s, as does a dimension without any value.
        """
        weight = self.reliance(prior)

        def blend(value, other):
            mixed = weight * np.nan_to_num(value) + (1 - weight) * np.nan_to_num(other)
            return np.where(np.isnan(value), other, mixed if weight < 1 else value)

        return Statistics(blend(self.mean, toward.mean), blend(self.variance, toward.variance), self.seconds)

    def to_json(self) -> dict:
        mean, variance = ([None if np.isnan(value) else float(value) for value in values] for values in (self.mean, self.variance))
        return {"mean": mean, "variance": variance, "seconds": self.seconds}

    @classmethod
    def from_json(cls, table: dict) -> Self:
        """Raises KeyError, TypeError or ValueError on anything `to_json` does not write."""
        mean, variance = (np.array(table[key], np.float64) for key in ("mean", "variance"))
        seconds = float(table["seconds"])
        if mean.ndim != 1 or mean.shape != variance.shape or not 0 <= seconds < np.inf:
            raise ValueError("statistics must hold two lists of equal length and a duration")
        if np.any(variance < 0) or np.isinf(mean).any() or np.isinf(variance).any():
            raise ValueError("statistics hold a negative or infinite value")
        return cls(mean, variance, seconds)
