"""An objective's outputs over a whole fold."""

from __future__ import annotations

import functools

import jax
import numpy as np

from jax_emossl import mesh
from jax_emossl.data.batches import Segments
from jax_emossl.data.indices import Sampler
from jax_emossl.objectives import Objective, Outputs, Params


@functools.partial(jax.jit, static_argnames="objective")
def _predict(objective: Objective, params: Params, batch: dict[str, jax.Array]) -> Outputs:
    return objective.predict(params, batch)


def predict(objective: Objective, params: Params, segments: Segments, batch_size: int, growth: float) -> dict[str, np.ndarray]:
    """The objective's outputs for every segment, in the segments' order."""
    outputs: dict[str, np.ndarray] = {}
    for selection in Sampler(segments.lengths, batch_size, growth=growth).in_order():
        batch = mesh.shard(segments.gather(selection.shard(*mesh.process())))
        kept = selection.segments[selection.weight > 0]
        for name, values in _predict(objective, params, batch).items():
            values = mesh.gather(values)[: len(kept)]
            outputs.setdefault(name, np.zeros((len(segments), *values.shape[1:]), values.dtype))[kept] = values
    return objective.finish(params, outputs, segments)
