"""Functionals: what people compute of a segment's features when they do not learn an encoder."""

import dataclasses

import numpy as np
from jaxtyping import Float

from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus

_PERCENTILES = (5, 25, 50, 75, 95)


def of_fold(corpus: Corpus, fold: str, frontend: Frontend) -> Float[np.ndarray, "s p"]:
    """Functionals of every segment of a fold, of its frames as the frontend normalises them, neither pooled nor stacked."""
    segments = Segments(corpus, [fold], dataclasses.replace(frontend, pool=1, stack=1))
    return np.array([of_segment(segments.steps(i)) for i in range(len(segments))], np.float32)


def of_segment(frames: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "p"]:
    """Per feature mean, deviation, percentiles, slope over the segment, mean size and deviation of its changes; and log duration."""
    frames = np.asarray(frames, np.float64)
    time = np.linspace(-0.5, 0.5, len(frames)) if len(frames) > 1 else np.zeros(1)
    slope = time @ frames / max(time @ time, 1e-12)
    change = np.diff(frames, axis=0) if len(frames) > 1 else np.zeros((1, frames.shape[1]))
    percentiles = np.percentile(frames, _PERCENTILES, axis=0)
    parts = [frames.mean(0), frames.std(0), *percentiles, slope, np.abs(change).mean(0), change.std(0), [np.log(len(frames))]]
    return np.concatenate(parts)
