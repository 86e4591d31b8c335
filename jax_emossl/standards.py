"""Standards: where each recording's vectors lie, so that what differs between recordings alone is taken out."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_emossl.data.batches import Recordings, Segments

Standards = dict[str, Float[Array, "*r p"]]
"""`location` and `scale`: (P,) of all vectors together, or (R, P) of every recording's."""
_SMALLEST_SCALE = 1e-3
_MOST, _MOST_TOGETHER = 32, 2048  # segments of a recording, and of all together unless there are more recordings


def reference(train: Segments, background: Segments) -> Segments:
    """Segments whose vectors give the standards: of each recording that `train` has, some of the `background`, evenly spaced.

    With 32 of them a location is off by a sixth of a deviation. Of more than 64 recordings there are fewer of each, so that an
    evaluation does not encode a whole large fold.
    """
    chosen, places = [], np.unique(train.by_recording.place)
    most = int(np.clip(_MOST_TOGETHER // len(places), 1, _MOST))
    for place in places:
        own = np.flatnonzero(background.by_recording.place == place)
        chosen.append(own[np.linspace(0, len(own) - 1, min(most, len(own))).round().astype(int)])
    return background.take(np.sort(np.concatenate(chosen)))


def overall(vectors: Float[Array, "s p"]) -> Standards:
    """Mean and deviation of all vectors together."""
    return {"location": vectors.mean(0), "scale": vectors.std(0)}


@jax.jit
def of_recordings(vectors: Float[Array, "s p"], recordings: Recordings, toward: Standards) -> Standards:
    """Mean and deviation of each recording's vectors, shrunk `toward` the training fold's; its own weigh `recordings.reliance`.

    Its unlabelled segments count too: like the features' normalisation this is transductive. Without any, it is like the fold.
    """
    number = len(recordings.reliance)
    count = jax.ops.segment_sum(jnp.ones(len(vectors)), recordings.place, number)[:, None]
    weight = jnp.where(count > 0, recordings.reliance[:, None], 0)
    mean = jax.ops.segment_sum(vectors, recordings.place, number) / jnp.maximum(count, 1)
    squares = (vectors - mean[recordings.place]) ** 2
    variance = jax.ops.segment_sum(squares, recordings.place, number) / jnp.maximum(count, 1)
    location = weight * mean + (1 - weight) * toward["location"]
    return {"location": location, "scale": jnp.sqrt(weight * variance + (1 - weight) * toward["scale"] ** 2) + _SMALLEST_SCALE}


@jax.jit
def standardised(vectors: Float[Array, "s p"], recordings: Recordings, toward: Standards) -> Float[Array, "s p"]:
    """Vectors less the location of their recording, over its scale."""
    own = of_recordings(vectors, recordings, toward)
    return (vectors - own["location"][recordings.place]) / own["scale"][recordings.place]
