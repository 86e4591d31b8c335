"""Pretraining: reconstruct randomly masked timesteps of the encoded features.

After Nimitsurachat & Washington 2023 (arXiv 2307.12343); spans as in Mockingjay (Liu et al. 2020). Where asked for, the
pooled encoder must also tell statistics of the whole crop from what is left of it, so that it keeps what functionals know. They
begin to count when the encoder has learned to interpolate: where they do from the start, it may never learn that.

Where a decoder is asked for, the encoder reads the unmasked steps alone, which costs less the more are masked, and a light network of
its own kind reconstructs the others (masked autoencoders, He et al. 2022, arXiv 2111.06377).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.layers import Dense, valid_steps
from jax_emossl.masking import most_visible, pack, packed, span_masks, unpacked
from jax_emossl.metrics import Report
from jax_emossl.objectives import Batch, Outputs, Params, Stepwise, Variables, fixed_keys, regression_loss, summed

_QUANTILES = (0.05, 0.5, 0.95)
_LAGS = (0.08, 0.16, 0.32, 0.64)  # s, of the autocorrelations
_STATISTICS_FROM = 0.3  # share of the training from which the weight of the statistics grows, linearly, to its full size at the end
_SILENCE = 0.01  # variance that is added to a dimension's, so that one which hardly moves has no autocorrelation


def steps_per_dimension(num_frames: Int[Array, "b"], stack: int, dimension: int) -> Int[Array, "b d"]:
    """How many steps of a row have a value in each dimension: where its frames do not fill the last stack, some have one less."""
    place = jnp.arange(dimension) // (dimension // stack)  # of the dimension's frame in a step
    return -((place - num_frames[:, None]) // stack)


def valid_values(counts: Int[Array, "b d"], length: int) -> Bool[Array, "b t d"]:
    """True for the first steps of every dimension, so many as it has, False for fill and padding."""
    return jnp.arange(length)[:, None] < counts[:, None]


def crop_statistics(features: Float[Array, "b t d"], counts: Int[Array, "b d"], lags: tuple[int, ...]) -> Float[Array, "b s"]:
    """Per dimension what its first `counts` steps have of level and of movement, S = (6 + lags) D; 0 where there is none.

    Mean, deviation, mean size of the changes, quantiles, and autocorrelations at some lags (model steps), 0 beyond the row.
    """
    valid, number = valid_values(counts, features.shape[1]), jnp.maximum(counts, 1)
    mean = jnp.where(valid, features, 0).sum(1) / number
    centred = jnp.where(valid, features - mean[:, None], 0)
    energy = jnp.sum(centred**2, 1)
    deviation = jnp.sqrt(energy / number + 1e-5)
    changes = jnp.where(valid[:, 1:], jnp.abs(jnp.diff(features, axis=1)), 0).sum(1) / jnp.maximum(counts - 1, 1)
    ascending = _ascending(jnp.where(valid, features, jnp.inf))
    places = (jnp.array(_QUANTILES)[:, None] * (number[:, None] - 1)).astype(jnp.int32)
    quantiles = jnp.where(counts[:, None] > 0, jnp.take_along_axis(ascending, places, 1), 0)
    movement = [jnp.sum(centred[:, lag:] * centred[:, : max(features.shape[1] - lag, 0)], 1) for lag in lags]
    movement = [covariance / (energy + _SILENCE * number) for covariance in movement]
    return jnp.concatenate([mean, deviation, changes, quantiles.reshape(len(features), -1), *movement], -1)


def _ascending(values: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Sorted over time by a bitonic network (Batcher 1968, AFIPS 32), of which a CPU takes many columns at once: a ninth of XLA's time."""
    rows, length, columns = values.shape
    size = 1 << (length - 1).bit_length()
    made = jnp.pad(values, ((0, 0), (0, size - length), (0, 0)), constant_values=jnp.inf)
    for merged in (2**k for k in range(1, size.bit_length())):  # from two sorted halves
        for half in (merged >> k for k in range(1, merged.bit_length())):
            turn = -1 if 2 * half == merged else 1  # first, the second half descends
            pairs = made.reshape(rows, -1, 2, half, columns)
            one, other = pairs[:, :, 0], pairs[:, :, 1, ::turn]
            made = jnp.stack([jnp.minimum(one, other), jnp.maximum(one, other)[:, :, ::turn]], 2).reshape(made.shape)
    return made[:, :length]


class Reconstruction(nn.Module):
    """Predicts the features of every step from the encoder's output."""

    dimension: int

    @nn.compact
    def __call__(self, output: Float[Array, "b t w"]) -> Float[Array, "b t d"]:
        return Dense(self.dimension)(nn.LayerNorm()(output))


class _Model(nn.Module):
    encoder: nn.Module
    dimension: int
    statistics: int  # how many of each dimension are told
    decoder: nn.Module | None

    @nn.compact
    def __call__(self, features, num_steps, masked, deterministic, most):  # `most` steps of a row are visible, or fewer
        if self.decoder is None:
            encoded = self.encoder(features, num_steps, masked, deterministic)
            output = encoded.layers[-1]
        else:
            length = features.shape[1]
            positions, number = pack(valid_steps(num_steps, length) & ~masked, most)
            encoded = self.encoder(packed(features, positions), number, None, deterministic, positions)
            narrow = Dense(self.decoder.width, name="narrow")(nn.LayerNorm()(encoded.layers[-1]))  # so that less is spread
            spread = unpacked(narrow, positions, length)
            output = self.decoder(spread, num_steps, masked, deterministic).layers[-1]
        reconstructed = Reconstruction(self.dimension, name="head")(output)
        if not self.statistics:
            return reconstructed, None
        pooled = nn.LayerNorm()(encoded.pooled())
        return reconstructed, nn.Dense(self.statistics * self.dimension, name="statistics")(pooled)


@dataclasses.dataclass(frozen=True)
class MaskedTimesteps(Stepwise):
    """Reconstruction, judged on masked valid steps only.

    Attributes:
      dimension: width of a model step.
      ratio: share of the steps that is masked.
      span: model steps masked in one piece.
      loss_name: of features and statistics, see `regression_loss`.
      statistics_weight: of the loss of the crop's statistics, in the end; 0 leaves reconstruction alone.
      lags: model steps of the autocorrelations among these.
      stack: pooled frames of a model step. What fills up the last one is neither reconstructed nor counted in statistics.
      decoder_width: of the one layer that reconstructs from the unmasked steps, which alone are then encoded; 0 = all are, and no decoder.
    """

    dimension: int
    ratio: float
    span: int
    loss_name: str
    statistics_weight: float = 0.0
    lags: tuple[int, ...] = ()
    stack: int = 1
    decoder_width: int = 0
    selection: str = "total_loss"

    @property
    def _model(self) -> _Model:
        decoder = None
        if self.decoder_width:
            # One head looks back and one ahead, as far as any of the encoder's; each attends over all steps, so that more would cost more.
            decoder = self.encoder.clone(width=self.decoder_width, layers=1, heads=2, near=self.encoder.far)
        statistics = (3 + len(_QUANTILES) + len(self.lags)) * (self.statistics_weight > 0)
        return _Model(self.encoder, self.dimension, statistics, decoder)

    def init(self, key: jax.Array, example: Batch) -> Params:
        features, num_steps = example["features"], example["num_steps"]
        return self._model.init(key, features, num_steps, jnp.zeros(features.shape[:2], bool), True, features.shape[1])["params"]

    def reconstruct(
        self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None = None
    ) -> tuple[Bool[Array, "b t"], Float[Array, "b t d"], Float[Array, "b s"] | None]:
        """A mask of every row, drawn from its key, and the features and statistics predicted under it."""
        features, num_steps = batch["features"], batch["num_steps"]
        masked = span_masks(keys, num_steps, features.shape[1], self.ratio, self.span, exact=self.decoder_width > 0)
        most = most_visible(features.shape[1], self.ratio)
        rngs = None if dropout is None else {"dropout": dropout}
        params = {"params": variables["params"]}
        return masked, *self._model.apply(params, features, num_steps, masked, dropout is None, most, rngs=rngs)

    def sums(self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None) -> dict[str, Float[Array, "b"]]:
        """Loss of the masked steps, of 0 (the mean) in their place, and of the statistics; a step counts as far as it has frames."""
        features, error = batch["features"], regression_loss(self.loss_name)
        masked, predicted, statistics = self.reconstruct(variables, batch, keys, dropout)
        counts = steps_per_dimension(batch["num_frames"], self.stack, self.dimension)
        there = valid_values(counts, features.shape[1])
        own, constant = (jnp.where(there, error(guess, features), 0.0).mean(-1) for guess in (predicted, jnp.zeros_like(features)))
        frames = valid_values(steps_per_dimension(batch["num_frames"], self.stack, self.stack), features.shape[1])  # by place in the stack
        sums = summed(masked, loss=own, loss_of_constant=constant, steps=frames.mean(-1))
        if statistics is not None:
            off = error(statistics, crop_statistics(features, counts, self.lags)).reshape(len(features), -1, self.dimension).mean(1)
            sums["loss_of_statistics"] = sums["steps"] * jnp.mean(off, 1, where=counts > 0)  # a row weighs the same in both losses
        return sums

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, progress: float = 1.0) -> tuple[Array, Array, dict[str, Array]]:
        reconstruction, count, sums = super().loss(variables, batch, key, progress)
        if not self.statistics_weight:
            return reconstruction, count, sums
        weight = self.statistics_weight * jnp.clip((progress - _STATISTICS_FROM) / (1 - _STATISTICS_FROM), 0, 1)
        total = reconstruction + weight * sums["loss_of_statistics"]
        return total, count, {"loss_of_reconstruction": reconstruction, **sums}

    def evaluate(self, outputs: Outputs, labels: np.ndarray, calibration: None) -> Report:
        """Losses per masked step, and the weighted total."""
        means, _ = super().evaluate(outputs, labels, calibration)
        return means | {"total_loss": means["loss"] + self.statistics_weight * means.get("loss_of_statistics", 0.0)}, {}

    def illustrate(self, variables: Variables, batch: Batch) -> dict[str, np.ndarray]:
        """What masking leaves of each row, and what is made of it."""
        masked, reconstructed, _ = self.reconstruct(variables, batch, fixed_keys(batch))
        return {"masked": np.asarray(masked), "reconstructed": np.asarray(reconstructed)}


def make(config, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> MaskedTimesteps:
    """The objective with the fields `config`; UserError where only unmasked steps are to be encoded and the encoder needs all."""
    if config.decoder_width and not getattr(encoder, "takes_positions", False):
        raise UserError(
            f"objective.decoder_width is {config.decoder_width}, but the encoder of model.name cannot skip steps: choose transformer, or 0."
        )
    span, lags = max(1, frontend.steps(config.span)), dict.fromkeys(map(frontend.steps, _LAGS))
    weight = config.statistics_weight
    own = config.ratio, span, config.loss, weight, tuple(lags), frontend.stack, config.decoder_width
    return MaskedTimesteps(encoder, frontend.dimension, *own)
