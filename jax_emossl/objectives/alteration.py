"""Pretraining: reconstruct the features from a version that was altered in time, in groups of dimensions and in magnitude.

After TERA (Liu et al. 2021, arXiv 2007.06028). The encoder's input is altered, not its embedding, as it never will be later on.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.layers import valid_steps
from jax_emossl.masking import span_mask
from jax_emossl.objectives import Batch, Params, Stepwise, Variables, regression_loss, summed
from jax_emossl.objectives.masked_timesteps import Reconstruction

_REPLACED, _KEPT = 0.1, 0.1  # shares of rows whose chosen steps are not set to 0 but replaced by others of the row, or left


class _Model(nn.Module):
    encoder: nn.Module
    dimension: int

    @nn.compact
    def __call__(self, features, num_steps, deterministic):
        encoded = self.encoder(features, num_steps, None, deterministic)
        return Reconstruction(self.dimension, name="head")(encoded.layers[-1])


@dataclasses.dataclass(frozen=True)
class Alteration(Stepwise):
    """Reconstruction of all valid steps.

    Attributes:
      features: names of features, whose columns repeat for every frame in a model step.
      stack: frames in a model step.
      ratio: share of the steps that is altered.
      span: model steps altered in one piece.
      group: largest number of neighbouring features that are hidden throughout a row.
      noisy: share of the rows to which noise is added.
      noise: its deviation.
      loss_name: see `regression_loss`.
    """

    features: int
    stack: int
    ratio: float
    span: int
    group: int
    noisy: float
    noise: float
    loss_name: str

    @property
    def _model(self) -> _Model:
        return _Model(self.encoder, self.features * self.stack)

    def init(self, key: jax.Array, example: Batch) -> Params:
        return self._model.init(key, example["features"], example["num_steps"], True)["params"]

    def altered(self, key: jax.Array, features: Float[Array, "t d"], num_steps: Int[Array, ""]) -> Float[Array, "t d"]:
        """One row as the encoder sees it."""
        mask_key, kind_key, shift_key, width_key, first_key, noisy_key, noise_key = jax.random.split(key, 7)
        steps = jnp.arange(len(features))
        chosen = span_mask(mask_key, num_steps, len(features), self.ratio, self.span)
        shift = jax.random.randint(shift_key, (), 0, num_steps)
        kind = jax.random.uniform(kind_key)
        others = jnp.where(kind < _REPLACED, features[(steps + shift) % num_steps], jnp.where(kind < _REPLACED + _KEPT, features, 0))
        made = jnp.where(chosen[:, None], others, features)
        width = jax.random.randint(width_key, (), 0, self.group + 1)
        first = jax.random.randint(first_key, (), 0, self.features - width + 1)
        feature = jnp.arange(self.features * self.stack) % self.features
        made = jnp.where((feature >= first) & (feature < first + width), 0, made)
        noise = self.noise * jax.random.normal(noise_key, made.shape)
        return made + jnp.where(jax.random.uniform(noisy_key) < self.noisy, noise, 0)

    def reconstruct(
        self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
        """Rows altered, each by its key, and what is made of them."""
        rngs, num_steps = None if dropout is None else {"dropout": dropout}, jnp.asarray(batch["num_steps"])
        altered = jax.vmap(self.altered)(keys, batch["features"], num_steps)
        return altered, self._model.apply({"params": variables["params"]}, altered, num_steps, dropout is None, rngs=rngs)

    def sums(self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None) -> dict[str, Float[Array, "b"]]:
        """Losses of the valid steps: of the reconstruction, of 0 (the mean), and of what was altered in its place."""
        features, error = batch["features"], regression_loss(self.loss_name)
        altered, made = self.reconstruct(variables, batch, keys, dropout)
        guesses = {"loss": made, "loss_of_constant": jnp.zeros_like(features), "loss_of_copy": altered}
        valid = valid_steps(batch["num_steps"], features.shape[1])
        return summed(valid, **{name: error(guess, features).mean(-1) for name, guess in guesses.items()})


def make(config, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> Alteration:
    """The objective with the fields `config`."""
    features, span = len(frontend.names), max(1, frontend.steps(config.span))
    group = round(config.group * features)
    return Alteration(encoder, features, frontend.stack, config.share, span, group, config.noisy, config.noise, config.loss)
