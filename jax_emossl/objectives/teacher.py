"""Pretraining: tell, from what masking leaves of a segment, what a teacher makes of the whole.

data2vec (Baevski et al. 2022, arXiv 2202.03555): the teacher is a moving average of the encoder, its word the mean of its top layers.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_emossl.data.batches import Segments, example
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.layers import Dense, valid_steps
from jax_emossl.masking import span_masks
from jax_emossl.objectives import Batch, Params, Stepwise, Variables, regression_loss, summed


def over_time(x: Float[Array, "b t w"], num_steps: Int[Array, "b"]) -> Float[Array, "b t w"]:
    """Every channel with mean 0 and variance 1 over a row's valid steps; without that a teacher may collapse to a constant."""
    valid, count = valid_steps(num_steps, x.shape[1])[..., None], jnp.asarray(num_steps)[:, None, None]
    mean = jnp.sum(jnp.where(valid, x, 0), 1, keepdims=True) / count
    variance = jnp.sum(jnp.where(valid, (x - mean) ** 2, 0), 1, keepdims=True) / count
    return (x - mean) / jnp.sqrt(variance + 1e-5)


class _Model(nn.Module):
    encoder: nn.Module

    @nn.compact
    def __call__(self, features, num_steps, masked, deterministic):
        output = self.encoder(features, num_steps, masked, deterministic).layers[-1]
        return Dense(output.shape[-1], name="head")(nn.LayerNorm()(output))


@dataclasses.dataclass(frozen=True)
class Teacher(Stepwise):
    """Regression of the teacher's representation, judged on masked steps.

    Attributes:
      ratio: share of the steps that is masked.
      span: model steps masked in one piece.
      layers: at the top, of which the mean is the target.
      decay, final_decay: what the teacher keeps of itself at a step, at the beginning and, growing evenly, at the end.
      loss_name: see `regression_loss`.
    """

    ratio: float
    span: int
    layers: int
    decay: float
    final_decay: float
    loss_name: str

    def init(self, key: jax.Array, example: Batch) -> Params:
        return _Model(self.encoder).init(key, example["features"], example["num_steps"], None, True)["params"]

    def begin(self, params: Params, segments: Segments) -> Params:
        return {"teacher": params["encoder"]}

    def follow(self, variables: Variables, progress: Array) -> Params:
        """The teacher moves toward the encoder."""
        kept = self.decay + (self.final_decay - self.decay) * progress
        old, new = variables["constants"]["teacher"], variables["params"]["encoder"]
        return {"teacher": jax.tree.map(lambda t, e: kept * t + (1 - kept) * e, old, new)}

    def target(self, variables: Variables, batch: Batch) -> Float[Array, "b t w"]:
        """What the teacher says of the whole segment."""
        teacher = jax.lax.stop_gradient(variables["constants"]["teacher"])
        encoded = self.encoder.apply({"params": teacher}, batch["features"], batch["num_steps"])
        top = [over_time(layer, batch["num_steps"]) for layer in encoded.layers[-self.layers :]]
        return sum(top) / len(top)

    def sums(self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None) -> dict[str, Float[Array, "b"]]:
        """Losses of the masked steps: of what is told, and of 0, the mean over a segment: where that falls to 0 the teacher has collapsed."""
        features, num_steps, error = batch["features"], batch["num_steps"], regression_loss(self.loss_name)
        masked, rngs = span_masks(keys, num_steps, features.shape[1], self.ratio, self.span), None
        if dropout is not None:
            rngs = {"dropout": dropout}
        told = _Model(self.encoder).apply({"params": variables["params"]}, features, num_steps, masked, dropout is None, rngs=rngs)
        target = self.target(variables, batch)
        return summed(masked, loss=error(told, target).mean(-1), loss_of_constant=error(jnp.zeros_like(target), target).mean(-1))


def make(config, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> Teacher:
    """The objective with the fields `config`; UserError where the teacher would move ever faster, or its layers have no mean."""
    if config.final_decay < config.decay:
        raise UserError(
            f"objective.final_decay of teacher is {config.final_decay:g}, below its decay of {config.decay:g}: it should slow down."
        )
    batch = example(frontend)
    made, _ = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), batch["features"], batch["num_steps"]))
    if config.layers > len(made.layers):
        raise UserError(
            f"objective.layers of teacher is {config.layers}, but the encoder of model.name gives {len(made.layers)}: average fewer."
        )
    if len({layer.shape[-1] for layer in made.layers[-config.layers :]}) > 1:
        raise UserError(f"objective.layers of teacher is {config.layers}, but these layers of the encoder differ in width: average fewer.")
    span = max(1, frontend.steps(config.span))
    return Teacher(encoder, config.ratio, span, config.layers, config.decay, config.final_decay, config.loss)
