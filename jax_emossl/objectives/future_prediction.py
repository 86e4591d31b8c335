"""Pretraining: predict the features some steps ahead from the present and the past.

Autoregressive predictive coding (APC, Chung et al. 2019, arXiv 1904.03240), where asked for through a vector-quantised bottleneck
(VQ-APC, Chung et al. 2020, arXiv 2005.08392). The encoder must not see what is to be predicted.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.layers import Dense
from jax_emossl.metrics import Report
from jax_emossl.objectives import Batch, Outputs, Params, Stepwise, Variables, regression_loss, summed


class Quantiser(nn.Module):
    """Replaces every step by one of a few learned vectors.

    Drawn by the Gumbel softmax (Jang et al. 2017, arXiv 1611.01144), whose gradient passes straight through the choice; without
    noise the likeliest one is taken.
    """

    codes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t w"], noise: Float[Array, "b t k"] | float
    ) -> tuple[Float[Array, "b t w"], Float[Array, "b t k"]]:
        """The vectors, and which of them (one-hot)."""
        scores = Dense(self.codes, name="scores")(x) + noise
        soft, hard = jax.nn.softmax(scores), jax.nn.one_hot(scores.argmax(-1), self.codes)
        chosen = hard + soft - jax.lax.stop_gradient(soft)
        return Dense(x.shape[-1], use_bias=False, name="codebook")(chosen), hard


class _Model(nn.Module):
    encoder: nn.Module
    dimension: int
    codes: int

    @nn.compact
    def __call__(self, features, num_steps, deterministic, noise):
        hidden, chosen = nn.LayerNorm()(self.encoder(features, num_steps, None, deterministic).layers[-1]), None
        if self.codes:
            hidden, chosen = Quantiser(self.codes, name="quantiser")(hidden, noise)
        return Dense(self.dimension, name="head")(hidden), chosen


@dataclasses.dataclass(frozen=True)
class FuturePrediction(Stepwise):
    """Prediction of every step from those that lie `ahead` model steps or more before it.

    Attributes:
      dimension: width of a model step.
      loss_name: see `regression_loss`.
      codes: vectors of the bottleneck; 0 = none.
    """

    dimension: int
    ahead: int
    loss_name: str
    codes: int = 0

    @property
    def _model(self) -> _Model:
        return _Model(self.encoder, self.dimension, self.codes)

    def init(self, key: jax.Array, example: Batch) -> Params:
        return self._model.init(key, example["features"], example["num_steps"], True, 0.0)["params"]

    def sums(self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None) -> dict[str, Float[Array, "b ..."]]:
        """Losses of the steps that have one `ahead` of them: of the prediction, of 0 (the mean), and of the present step in its place."""
        features, num_steps, error = batch["features"], jnp.asarray(batch["num_steps"]), regression_loss(self.loss_name)
        length, noise, rngs = features.shape[1], 0.0, None
        if dropout is not None:
            noise, rngs = jax.vmap(lambda key: jax.random.gumbel(key, (length, self.codes)))(keys), {"dropout": dropout}
        predicted, chosen = self._model.apply({"params": variables["params"]}, features, num_steps, dropout is None, noise, rngs=rngs)
        future, counted = jnp.roll(features, -self.ahead, 1), jnp.arange(length) + self.ahead < num_steps[:, None]
        guesses = {"loss": predicted, "loss_of_constant": jnp.zeros_like(features), "loss_of_copy": features}
        sums = summed(counted, **{name: error(guess, future).mean(-1) for name, guess in guesses.items()})
        return sums if chosen is None else sums | {"codes": jnp.sum(jnp.where(counted[..., None], chosen, 0), 1)}

    def evaluate(self, outputs: Outputs, labels: np.ndarray, calibration: None) -> Report:
        """Losses per predicted step and, of a bottleneck, the perplexity of its codes: how many are in use, as it were."""
        report, undefined = super().evaluate(outputs, labels, calibration)
        if self.codes:
            share = outputs["codes"].sum(0) / outputs["codes"].sum()
            report["perplexity"] = float(np.exp(-np.sum(share * np.log(np.maximum(share, 1e-12)))))
        return report, undefined


def make(config, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> FuturePrediction:
    """The objective with the fields `config`; UserError where the encoder sees ahead."""
    if not getattr(encoder, "causal", False):
        raise UserError(
            "objective.name has future_prediction, but the encoder sees what it should predict: give --config.model.causal=True."
        )
    return FuturePrediction(encoder, frontend.dimension, max(1, frontend.steps(config.ahead)), config.loss, config.codes)
