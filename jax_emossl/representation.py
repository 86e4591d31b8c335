"""Fixed vectors of segments: an encoder's pooled representation."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jaxtyping import Float

from jax_emossl.data.batches import Segments
from jax_emossl.objectives import Batch, Objective, Outputs, Params, Variables
from jax_emossl.predictor import predict
from jax_emossl.resident import Resident


@dataclasses.dataclass(frozen=True)
class Representation(Objective):
    """An encoder's pooled representation of each segment: nothing is learned, the predictor alone runs it."""

    encoder: nn.Module
    reads: str = dataclasses.field(default="encoder", kw_only=True)  # see `Encoded.read`

    def predict(self, variables: Variables, batch: Batch) -> Outputs:
        encoded = self.encoder.apply({"params": variables["params"]["encoder"]}, batch["features"], batch["num_steps"])
        return {"pooled": encoded.read(self.reads)}


def represent(
    encoder: nn.Module,
    params: Params,
    segments: Mapping[str, Segments],
    batch_size: int,
    growth: float,
    resident: Resident | None = None,
    reads: str = "encoder",
) -> dict[str, Float[np.ndarray, "s p"]]:
    """The pooled representation of every fold's segments by an encoder with these parameters, or what else heads read of it."""
    variables, sizes = [{"params": {"encoder": params}}], (batch_size, growth)
    own = {
        fold: predict(Representation(encoder, reads=reads), variables, [part], *sizes, resident=resident) for fold, part in segments.items()
    }
    return {fold: outputs["pooled"] for fold, (outputs,) in own.items()}
