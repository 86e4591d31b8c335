"""Standards: where the vectors of a segment's recording lie, so that what differs between recordings alone is taken out."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_emossl.data.batches import Segments

Standards = dict[str, Float[Array, "*r p"]]
"""`location` and `scale`: (P,) of all vectors together, or (S, P) of every segment's."""
_SMALLEST_SCALE = 1e-3
_MOST, _MOST_TOGETHER = 32, 2048  # segments of a recording, and of all together unless there are more recordings
_BLOCK = 512  # segments that are compared with all others at once


def reference(train: Segments, background: Segments) -> Segments:
    """Segments whose vectors give the standards: of each recording that `train` has, some of the `background`, evenly spaced.

    With 32 of them a location is off by a sixth of a deviation. Of more than 64 recordings there are fewer of each, so that an
    evaluation does not encode a whole large fold.
    """
    chosen, recordings = [], np.unique(train.basis[:, 1])
    most = int(np.clip(_MOST_TOGETHER // len(recordings), 1, _MOST))
    for first in recordings:
        own = np.flatnonzero(background.basis[:, 1] == first)
        spaced = own[np.linspace(0, len(own) - 1, min(most, len(own))).round().astype(int)]
        chosen.append(np.union1d(spaced, own[background.enrolled[own]]))
    return background.take(np.sort(np.concatenate(chosen)))


def overall(vectors: Float[Array, "s p"]) -> Standards:
    """Mean and deviation of all vectors together."""
    return {"location": vectors.mean(0), "scale": vectors.std(0)}


def of_segments(
    basis: Int[Array, "s 3"], vectors: Float[Array, "n p"], order: Int[Array, "n"], toward: Standards, prior: float
) -> Standards:
    """Standards of segments by the `vectors` of those others, known by their `order`, on which they rest (see `normalisation.basis`).

    Of n others, the mean weighs n/(n + prior) and the variance (n - 1)/(n - 1 + prior) against the training fold's; a segment's own
    vector never counts, else a recording of few would lose what sets its segments apart. Without others they are the fold's.
    """
    vectors = vectors - toward["location"]  # so that squares lose no digits

    def of_one(own: Int[Array, "3"]) -> Standards:
        counts = (own[1] <= order) & (order < own[2]) & (order != own[0])
        number, counts = counts.sum(), counts.astype(jnp.float32)
        mean, square = (jnp.dot(counts, x, precision="highest") / jnp.maximum(number, 1) for x in (vectors, vectors**2))
        spread = (square - mean**2) * number / jnp.maximum(number - 1, 1)  # unbiased
        variance = _blended(spread, toward["scale"] ** 2, number - 1, prior)
        return {
            "location": toward["location"] + _blended(mean, 0.0, number, prior),
            "scale": jnp.sqrt(jnp.maximum(variance, 0)) + _SMALLEST_SCALE,
        }

    return jax.lax.map(of_one, basis, batch_size=_BLOCK)


def _blended(own: Float[Array, "p"], other: Float[Array, "p"] | float, number: Int[Array, ""], prior: float) -> Float[Array, "p"]:
    weight = jnp.where(number > 0, number / (number + prior), 0)
    return weight * own + (1 - weight) * other


@jax.jit
def standardised(vectors: Float[Array, "s p"], basis: Int[Array, "s 3"], toward: Standards, prior: float) -> Float[Array, "s p"]:
    """Vectors less their location, over their scale; they rest on one another."""
    own = of_segments(basis, vectors, basis[:, 0], toward, prior)
    return (vectors - own["location"]) / own["scale"]
