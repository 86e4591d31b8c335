"""Pretraining: reconstruct randomly masked timesteps of the encoded features.

After Nimitsurachat & Washington 2023 (arXiv 2307.12343); spans as in Mockingjay (Liu et al. 2020). Where asked for, the
pooled encoder must also tell statistics of the whole crop from what is left of it, so that it keeps what functionals know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data.batches import Segments
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.metrics import Report
from jax_emossl.model import Reconstruction, TransformerEncoder, pool_statistics, valid_steps
from jax_emossl.objectives import Batch, Outputs, Params, check_choice, regression_loss

_QUANTILES = (0.05, 0.5, 0.95)


def span_mask(key: jax.Array, num_frames: Int[Array, ""], length: int, ratio: float, span: int) -> Bool[Array, "t"]:
    """Masks about `ratio` of one row's valid steps, in spans of `span` steps.

    The row is cut into spans at a random phase and a random choice of them is masked, so that neighbouring
    ones may merge. Of two steps or more at least one stays visible; a row shorter than two spans has spans
    of half its length. At least one step is masked.
    """
    phase_key, choice_key, count_key = jax.random.split(key, 3)
    span = jnp.clip(num_frames // 2, 1, span)
    phase = jax.random.randint(phase_key, (), 0, span)
    block = (jnp.arange(length) + phase) // span
    blocks = (num_frames - 1 + phase) // span + 1
    count = jnp.floor(ratio * blocks + jax.random.uniform(count_key))
    count = jnp.maximum(1, jnp.minimum(count, blocks - 1))
    score = jax.random.uniform(choice_key, (length + 1,))
    score = jnp.where(jnp.arange(length + 1) < blocks, score, 2.0)
    rank = jnp.argsort(jnp.argsort(score))
    return (rank[block] < count) & (jnp.arange(length) < num_frames)


def crop_statistics(features: Float[Array, "b t d"], num_frames: Int[Array, "b"]) -> Float[Array, "b s"]:
    """Per dimension mean, deviation, mean size of the changes, and quantiles over the valid steps, S = 6 D."""
    valid = valid_steps(num_frames, features.shape[1])[..., None]
    changes = jnp.where(valid[:, 1:], jnp.abs(jnp.diff(features, axis=1)), 0).sum(1) / jnp.maximum(num_frames - 1, 1)[:, None]
    ascending = jnp.sort(jnp.where(valid, features, jnp.inf), 1)
    places = (jnp.array(_QUANTILES) * (num_frames[:, None] - 1)).astype(jnp.int32)
    quantiles = jnp.take_along_axis(ascending, places[..., None], 1)
    return jnp.concatenate([pool_statistics([features], num_frames), changes, quantiles.reshape(len(features), -1)], -1)


class _Model(nn.Module):
    encoder: TransformerEncoder
    dimension: int
    tells_statistics: bool

    @nn.compact
    def __call__(self, features, num_frames, masked, deterministic):
        outputs = self.encoder(features, num_frames, masked, deterministic)
        reconstructed = Reconstruction(name="head")(outputs, self.dimension)
        if not self.tells_statistics:
            return reconstructed, None
        pooled = nn.LayerNorm()(pool_statistics(outputs, num_frames))
        return reconstructed, nn.Dense((3 + len(_QUANTILES)) * self.dimension, name="statistics")(pooled)


@dataclasses.dataclass(frozen=True)
class MaskedTimesteps:
    """See `objectives.Objective`; reconstruction is judged on masked valid steps only.

    Attributes:
      dimension: width of a model step.
      ratio: share of the steps that is masked.
      span: model steps masked in one piece.
      loss_name: of features and statistics, see `regression_loss`.
      statistics: weight of the loss of the crop's statistics; 0 leaves reconstruction alone, by which steps are chosen anyway.
    """

    encoder: TransformerEncoder
    dimension: int
    ratio: float
    span: int
    loss_name: str
    statistics: float = 0.0
    selection: str = "loss"

    @property
    def _model(self) -> _Model:
        return _Model(self.encoder, self.dimension, self.statistics > 0)

    def init(self, key: jax.Array, batch: Batch, encoder: Params | None = None) -> Params:
        params = self._model.init(key, batch["features"][:1], batch["num_frames"][:1], None, True)["params"]
        return params if encoder is None else {**params, "encoder": encoder}

    def reconstruct(
        self, params: Params, batch: Batch, keys: jax.Array, dropout: jax.Array | None = None
    ) -> tuple[Bool[Array, "b t"], Float[Array, "b t d"], Float[Array, "b s"] | None]:
        """A mask of every row, drawn from its key, and the features and statistics predicted under it."""
        features, num_frames = batch["features"], jnp.asarray(batch["num_frames"])
        masked = jax.vmap(lambda k, n: span_mask(k, n, features.shape[1], self.ratio, self.span))(keys, num_frames)
        rngs = None if dropout is None else {"dropout": dropout}
        return masked, *self._model.apply({"params": params}, features, num_frames, masked, dropout is None, rngs=rngs)

    def _sums(self, params: Params, batch: Batch, keys: jax.Array, dropout: jax.Array | None) -> dict[str, Float[Array, "b"]]:
        """Per row: summed loss over masked steps, the same for a prediction of 0 (the mean), their number, and the statistics' loss."""
        features = batch["features"]
        masked, predicted, statistics = self.reconstruct(params, batch, keys, dropout)
        counted = masked & valid_steps(batch["num_frames"], features.shape[1])

        def total(guess):
            per_step = regression_loss(self.loss_name, guess, features).mean(-1)
            return jnp.sum(jnp.where(counted, per_step, 0.0), 1)

        count = counted.sum(1).astype(jnp.float32)
        sums = {"loss": total(predicted), "loss_of_constant": total(jnp.zeros_like(features)), "masked_steps": count}
        if statistics is not None:
            error = regression_loss(self.loss_name, statistics, crop_statistics(features, batch["num_frames"]))
            sums["loss_of_statistics"] = count * error.mean(-1)  # a row weighs the same in both losses
        return sums

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[Array, Array, dict[str, Array]]:
        mask_key, dropout = jax.random.split(key)
        keys = jax.random.split(mask_key, len(batch["num_frames"]))
        sums = {name: jnp.sum(batch["weight"] * x) for name, x in self._sums(params, batch, keys, dropout).items()}
        reconstruction, count = sums.pop("loss"), sums.pop("masked_steps")
        if not self.statistics:
            return reconstruction, count, sums
        total = reconstruction + self.statistics * sums["loss_of_statistics"]
        return total, count, {"loss_of_reconstruction": reconstruction, **sums}

    def predict(self, params: Params, batch: Batch) -> Outputs:
        # The mask of a segment depends on the segment alone, so that steps are compared on equal terms.
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(0), s))(batch["segment"])
        return self._sums(params, batch, keys, None)

    def finish(self, params: Params, outputs: Outputs, segments: Segments) -> Outputs:
        return outputs

    def extra(self, params: Params, train: Segments, background: Segments, predict: Callable[[], Outputs]) -> dict:
        return {}

    def calibrate(self, outputs: Outputs, labels: np.ndarray) -> None:
        return None

    def metrics(self, outputs: Outputs, labels: np.ndarray, calibration: None) -> Report:
        return {"loss": float(outputs["loss"].sum() / outputs["masked_steps"].sum())}, {}

    def constant(self, outputs: Outputs, labels: np.ndarray, train_labels: np.ndarray) -> Report:
        """Reconstructs every masked step as the mean."""
        return {"loss": float(outputs["loss_of_constant"].sum() / outputs["masked_steps"].sum())}, {}


def make(config, corpus: Corpus, encoder: TransformerEncoder, dimension: int) -> MaskedTimesteps:
    """The objective of `config.objective`."""
    if not 0 < config.ratio < 1:
        raise UserError(f"objective.ratio is {config.ratio}: give a share of masked steps between 0 and 1.")
    if config.span < 1:
        raise UserError(f"objective.span is {config.span}: give at least 1 step.")
    if not 0 <= config.statistics < float("inf"):
        raise UserError(f"objective.statistics is {config.statistics}: give a weight of 0 or more.")
    loss = check_choice("objective.loss", config.loss, ("l1", "l2", "huber"))
    return MaskedTimesteps(encoder, dimension, config.ratio, config.span, loss, config.statistics)
