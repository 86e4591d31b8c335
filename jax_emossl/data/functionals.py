"""Functionals: what people compute of a segment's features when they do not learn an encoder; of NumPy's arrays or JAX's."""

import numpy as np
from jaxtyping import Array, Float, Int

_PERCENTILES = (5, 25, 50, 75, 95)


def number(features: int) -> int:
    """How many there are of so many features."""
    return (5 + len(_PERCENTILES)) * features + 1


def of_segments(frames: Float[Array | np.ndarray, "b n f"], num_frames: Int[Array | np.ndarray, "b"]) -> Float[Array | np.ndarray, "b q"]:
    """Functionals of the first `num_frames` frames of every row; the rest is padding. The arrays are all NumPy's or all JAX's.

    Per feature mean, deviation, percentiles, slope over the segment, mean size and deviation of its changes; and log duration.
    """
    xp = frames.__array_namespace__()
    place, last = xp.arange(frames.shape[1]), num_frames[:, None] - 1
    there = (place <= last)[..., None]

    def moments(values, counted, count):
        mean = xp.where(counted, values, 0).sum(1) / count
        return mean, xp.sqrt((xp.where(counted, values - mean[:, None], 0) ** 2).sum(1) / count)

    mean, deviation = moments(frames, there, last + 1)
    changes, between, steps = frames[:, 1:] - frames[:, :-1], there[:, 1:], xp.maximum(last, 1)
    size, spread = moments(xp.abs(changes), between, steps)[0], moments(changes, between, steps)[1]
    time = xp.where(there, ((place - last / 2) / steps)[..., None], 0)  # from -1/2 to 1/2
    slope = xp.where(there, time * frames, 0).sum(1) / xp.maximum((time**2).sum(1), 1e-12)
    ascending = xp.sort(xp.where(there, frames, xp.inf), axis=1)
    percentiles = [_interpolated(xp, ascending, share / 100 * last) for share in _PERCENTILES]
    return xp.concatenate([mean, deviation, *percentiles, slope, size, spread, xp.log(last + 1.0)], axis=1)


def _interpolated(xp, values: Float[Array, "b n f"], place: Float[Array, "b 1"]) -> Float[Array, "b f"]:
    """The values at places between rows."""
    below = xp.floor(place).astype(int)
    low, high = (xp.take_along_axis(values, own[..., None], axis=1)[:, 0] for own in (below, xp.ceil(place).astype(int)))
    return low + (place - below) * (high - low)
