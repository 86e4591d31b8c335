"""Pretraining: tell which of a recording's segments a view of one belongs to, from another view of it.

InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) between two views that share no step, after a projection (Chen et al. 2020, arXiv
2002.05709). All that a view is to be told from comes from the same recording, so that the speaker and the channel are no shortcut.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.layers import valid_steps
from jax_emossl.masking import span_masks
from jax_emossl.metrics import Report
from jax_emossl.objectives import Batch, Objective, Outputs, Params, Variables, fixed_keys


def contrast(
    first: Float[Array, "b p"], second: Float[Array, "b p"], recording: Int[Array, "b"], counted: Bool[Array, "b"], temperature: float
) -> dict[str, Float[Array, "b"]]:
    """How well rows of unit vectors are told from the others of their recording, in both directions.

    Rows that are not `counted` are no candidates, and a row without another of its recording counts for nothing.

    Returns:
      Per row `loss`, `accuracy` (whether it is found), both of guessing (`..._of_constant`), and whether the row counts, `rows`.
    """
    candidates = (recording[:, None] == recording) & counted & counted[:, None]
    own = jnp.eye(len(first), dtype=bool)
    number, rows = candidates.sum(1), candidates.sum(1) > 1

    def one_way(similarity):
        right, others = jnp.diag(similarity), jnp.where(candidates & ~own, similarity, -jnp.inf)
        loss = jax.nn.logsumexp(jnp.where(own, similarity, others), axis=1) - right
        return loss, right > others.max(1)

    similarity = first @ second.T / temperature
    (loss, found), (back_loss, back_found) = one_way(similarity), one_way(similarity.T)
    chance = 1 / jnp.maximum(number, 1)
    made = {"loss": (loss + back_loss) / 2, "accuracy": (found.astype(jnp.float32) + back_found) / 2}
    made |= {"loss_of_constant": -jnp.log(chance), "accuracy_of_constant": chance}
    return {name: jnp.where(rows, own, 0.0) for name, own in made.items()} | {"rows": rows.astype(jnp.float32)}


class _Model(nn.Module):
    encoder: nn.Module

    @nn.compact
    def __call__(self, features, num_steps, masked, deterministic):
        encoded = self.encoder(features, num_steps, masked, deterministic)
        width = encoded.layers[-1].shape[-1]
        hidden = nn.gelu(nn.Dense(2 * width)(nn.LayerNorm()(encoded.pooled())))
        projected = nn.Dense(width)(hidden)
        return projected / jnp.sqrt(jnp.sum(projected**2, -1, keepdims=True) + 1e-12)


@dataclasses.dataclass(frozen=True)
class Agreement(Objective):
    """Agreement of two views of every segment: what one masks, the other shows.

    Attributes:
      ratio: share of the steps that the first view masks.
      span: model steps masked in one piece.
      temperature: of the similarities.
    """

    encoder: nn.Module
    ratio: float
    span: int
    temperature: float
    together: int
    selection: str = "loss"

    def init(self, key: jax.Array, example: Batch) -> Params:
        return _Model(self.encoder).init(key, example["features"], example["num_steps"], None, True)["params"]

    def begin(self, params: Params, segments: Segments) -> Params:
        """Nothing but a check; UserError where no recording has two segments."""
        if np.bincount(segments.basis[:, 1]).max() < 2:
            raise UserError("agreement tells segments of one recording apart, but no recording has two: take another objective.name.")
        return {}

    def _views(self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None) -> Outputs:
        features, num_steps = batch["features"], jnp.asarray(batch["num_steps"])
        masked = span_masks(keys, num_steps, features.shape[1], self.ratio, self.span)
        shown = valid_steps(num_steps, features.shape[1]) & ~masked
        views = {}
        for i, (name, hidden) in enumerate({"first": masked, "second": shown}.items()):
            rngs = None if dropout is None else {"dropout": jax.random.fold_in(dropout, i)}
            views[name] = _Model(self.encoder).apply(
                {"params": variables["params"]}, features, num_steps, hidden, dropout is None, rngs=rngs
            )
        return {**views, "told": num_steps > 1}  # a single step has one view only

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, progress: float = 1.0) -> tuple[Array, Array, dict[str, Array]]:
        row_key, dropout = jax.random.split(key)
        views = self._views(variables, batch, jax.random.split(row_key, len(batch["num_steps"])), dropout)
        counted = views["told"] & (batch["weight"] > 0)
        made = contrast(views["first"], views["second"], batch["basis"][:, 1], counted, self.temperature)
        sums = {name: own.sum() for name, own in made.items()}
        return sums.pop("loss"), sums.pop("rows"), sums

    def predict(self, variables: Variables, batch: Batch) -> Outputs:
        """The two views, unit vectors (B, P)."""
        return self._views(variables, batch, fixed_keys(batch), None)

    def finish(self, variables: Variables, outputs: Outputs, basis: Int[Array, "b 3"]) -> Outputs:
        """What `contrast` says of a fold, where a segment is told from all others of its recording."""
        return contrast(outputs["first"], outputs["second"], basis[:, 1], outputs["told"], self.temperature)

    def evaluate(self, outputs: Outputs, labels: np.ndarray, calibration: None) -> Report:
        """Means over the segments whose recording has another; UserError where there is none."""
        rows = outputs["rows"].sum()
        if not rows:
            raise UserError("agreement tells segments of one recording apart, but no recording of a fold has two: correct the folds.")
        return {name: float(own.sum() / rows) for name, own in outputs.items() if name != "rows"}, {}


def make(config, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> Agreement:
    """The objective with the fields `config`."""
    return Agreement(encoder, config.ratio, max(1, frontend.steps(config.span)), config.temperature, config.together)
