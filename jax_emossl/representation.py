"""Fixed vectors of segments: an encoder's pooled representation, and its standardisation by recording."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jaxtyping import Float

from jax_emossl.data.batches import Segments
from jax_emossl.objectives import Batch, Outputs, Params, Variables
from jax_emossl.predict import Resident, predict

Standards = dict[str, Float[np.ndarray, "r p"]]
"""`location` and `scale` of every recording of a corpus, in the order of `Segments.recording`."""
_SMALLEST_SCALE = 1e-3


@dataclasses.dataclass(frozen=True)
class Representation:
    """An encoder's pooled representation of each row, as something that the predictor can run."""

    encoder: nn.Module

    def predict(self, variables: Variables, batch: Batch) -> Outputs:
        encoded = self.encoder.apply({"params": variables["params"]["encoder"]}, batch["features"], batch["num_steps"])
        return {"pooled": encoded.pooled()}


def represent(
    encoder: nn.Module, params: Params, segments: Mapping[str, Segments], batch_size: int, growth: float, resident: Resident | None = None
) -> dict[str, Float[np.ndarray, "s p"]]:
    """The pooled representation of every fold's segments by an encoder with these parameters."""
    variables = {"params": {"encoder": params}}
    own = {fold: predict(Representation(encoder), [variables], [part], batch_size, growth, resident) for fold, part in segments.items()}
    return {fold: outputs["pooled"] for fold, (outputs,) in own.items()}


def overall(vectors: Float[np.ndarray, "s p"]) -> dict[str, Float[np.ndarray, "p"]]:
    """Location and scale of all vectors together."""
    return {"location": vectors.mean(0), "scale": vectors.std(0)}


def standards(
    vectors: Mapping[str, Float[np.ndarray, "s p"]], segments: Mapping[str, Segments], toward: dict[str, Float[np.ndarray, "p"]]
) -> Standards:
    """Per recording, mean and deviation of its segments' vectors, shrunk `toward` the training fold's.

    A recording's own get the weight of its features' statistics (`Segments.reliance`). It uses a recording's own segments,
    labelled or not, whatever its fold: the head is transductive, as the normalisation of the features is.

    Args:
      vectors: of every fold's segments.
      segments: the same folds.
    """
    number = len(next(iter(segments.values())).recording_names)
    location, scale = (np.tile(toward[name], (number, 1)) for name in ("location", "scale"))
    for fold, own in segments.items():
        order = np.argsort(own.recording, kind="stable")
        _, first = np.unique(own.recording[order], return_index=True)
        for rows in np.split(order, first[1:]):
            r, weight, mine = own.recording[rows[0]], own.reliance[rows[0]], vectors[fold][rows]
            location[r] = weight * mine.mean(0) + (1 - weight) * toward["location"]
            scale[r] = np.sqrt(weight * mine.var(0) + (1 - weight) * toward["scale"] ** 2)
    return {"location": location, "scale": scale + _SMALLEST_SCALE}


def standardised(vectors: Float[np.ndarray, "s p"], segments: Segments, by: Standards) -> Float[np.ndarray, "s p"]:
    """Vectors of segments less the location of their recording, over its scale."""
    return (vectors - by["location"][segments.recording]) / by["scale"][segments.recording]
