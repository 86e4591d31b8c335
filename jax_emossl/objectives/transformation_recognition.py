"""Pretraining: recognise which transformation a row has undergone.

After Sarkar & Etemad 2020 (arXiv 2002.03898), a binary head for each transformation; with one softmax per group of features after Wu
et al. 2023 (arXiv 2303.17611), where the encoder has groups. A transformation sees frames, not model steps, and knows no padding.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.layers import Dense, Dropout
from jax_emossl.metrics import Report
from jax_emossl.objectives import Batch, Objective, Outputs, Params, Variables, fixed_keys
from jax_emossl.transformations import TRANSFORMATIONS


class Recognition(nn.Module):
    """Logits from what an encoder says of a row, by two hidden layers."""

    outputs: int
    width: int
    dropout: float

    @nn.compact
    def __call__(self, said: Float[Array, "b p"], deterministic: bool) -> Float[Array, "b o"]:
        x = nn.LayerNorm()(said)
        for _ in range(2):
            x = Dropout(self.dropout)(nn.relu(Dense(self.width)(x)), deterministic)
        return Dense(self.outputs)(x)


class _Model(nn.Module):
    encoder: nn.Module
    groups: tuple[str, ...]
    heads: tuple[tuple[str, int], ...]  # their names and outputs, in each group
    reads: str
    width: int
    dropout: float

    @nn.compact
    def __call__(self, features, num_steps, deterministic):
        encoded = self.encoder(features, num_steps, None, deterministic)
        logits = []
        for i, group in enumerate(self.groups):
            said = encoded.part(i, len(self.groups)).read(self.reads)
            own = [Recognition(n, self.width, self.dropout, name=f"{group}_{name}")(said, deterministic) for name, n in self.heads]
            logits.append(jnp.concatenate(own, -1))
        return jnp.stack(logits, 1)


@dataclasses.dataclass(frozen=True)
class TransformationRecognition(Objective):
    """Every row is shown once under each transformation; each group of its features has an order of its own. K transformations, G groups.

    Attributes:
      groups: names, each with the places of its features in a frame.
      stack: frames of a model step.
      transformations: name and strength of each.
      weights: of the rows under each transformation (softmax), or of each one's head.
      binary: whether each transformation has a head of its own, whose two answers weigh the same, or one softmax tells them apart.
      reads: what heads read of the encoder, see `Encoded.read`.
      width: of the heads' hidden layers.
      dropout: in the heads.
    """

    encoder: nn.Module
    groups: tuple[tuple[str, tuple[int, ...]], ...]
    stack: int
    transformations: tuple[tuple[str, float | tuple[float, ...] | None], ...]
    weights: tuple[float, ...]
    binary: bool
    reads: str
    width: int
    dropout: float
    selection: str = "loss"

    @property
    def _model(self) -> _Model:
        names = [name for name, _ in self.transformations]
        heads = [(name, 1) for name in names] if self.binary else [("transformation", len(names))]
        return _Model(self.encoder, tuple(name for name, _ in self.groups), tuple(heads), self.reads, self.width, self.dropout)

    def init(self, key: jax.Array, example: Batch) -> Params:
        return self._model.init(key, example["features"], example["num_steps"], True)["params"]

    def shown(
        self, key: jax.Array, row: Float[Array, "t d"], num_steps: Int[Array, ""]
    ) -> tuple[Float[Array, "k t d"], Int[Array, "k g"], Int[Array, ""]]:
        """A row under every transformation, which one each group has undergone, and the valid steps.

        The last step of a segment may be filled up with zeros, which would tell how its time runs: it is left out.
        """
        order_key, *keys = jax.random.split(key, len(self.transformations) + 1)
        steps = jnp.maximum(num_steps - (self.stack > 1), 1)
        frames = row.reshape(len(row) * self.stack, -1)
        made = jnp.stack(
            [
                TRANSFORMATIONS[name](own, frames, steps * self.stack, strength)
                for own, (name, strength) in zip(keys, self.transformations, strict=True)
            ]
        )
        order_keys = jax.random.split(order_key, len(self.groups))
        order = jax.vmap(lambda own: jax.random.permutation(own, len(keys)))(order_keys).T
        group = np.zeros(frames.shape[1], int)
        for i, (_, places) in enumerate(self.groups):
            group[list(places)] = i
        mixed = jnp.take_along_axis(made, order[:, group][:, None], 0)
        return mixed.reshape(len(keys), *row.shape), order, steps

    def _logits(
        self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None
    ) -> tuple[Float[Array, "b k g k"], Int[Array, "b k g"]]:
        """What the heads say of every row as it is shown, and what each group has undergone."""
        rows, order, steps = jax.vmap(self.shown)(keys, batch["features"], jnp.asarray(batch["num_steps"]))
        number = rows.shape[1]
        inputs = rows.reshape(-1, *rows.shape[2:]), jnp.repeat(steps, number), dropout is None
        logits = self._model.apply({"params": variables["params"]}, *inputs, rngs=None if dropout is None else {"dropout": dropout})
        return logits.reshape(*order.shape, number), order

    def _row_loss(self, logits: Float[Array, "b k g k"], order: Int[Array, "b k g"]) -> Float[Array, "b"]:
        """Mean over what is shown, summed over the groups."""
        weights = jnp.array(self.weights)
        if self.binary:
            undergone = jax.nn.one_hot(order, logits.shape[-1])
            balance = jnp.where(undergone > 0, 0.5, 0.5 / (logits.shape[-1] - 1))
            return jnp.sum(weights * balance * optax.sigmoid_binary_cross_entropy(logits, undergone), (1, 2, 3))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, order)
        return jnp.sum(weights[order] * losses, (1, 2)) / weights.sum()

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, progress: float = 1.0) -> tuple[Array, Array, dict[str, Array]]:
        row_key, dropout = jax.random.split(key)
        own = self._logits(variables, batch, jax.random.split(row_key, len(batch["num_steps"])), dropout)
        return jnp.sum(batch["weight"] * self._row_loss(*own)), batch["weight"].sum(), {}

    def predict(self, variables: Variables, batch: Batch) -> Outputs:
        """`loss` (B,), and `called` (B, G, K, K): whether a group under a transformation is called each of them."""
        logits, order = self._logits(variables, batch, fixed_keys(batch), None)
        called = logits > 0 if self.binary else jax.nn.one_hot(logits.argmax(-1), logits.shape[-1]) > 0
        sorted_ = jnp.take_along_axis(called, jnp.argsort(order, 1)[..., None], 1)
        return {"loss": self._row_loss(logits, order), "called": jnp.moveaxis(sorted_, 2, 1)}

    def evaluate(self, outputs: Outputs, labels: np.ndarray, calibration: None) -> Report:
        """The loss and, of each group and transformation, the recognition accuracy: the mean of the shares of rows under it that are
        called so, and of the others that are not; half is chance. Several groups' names stand before the transformations'.
        """
        report = {"loss": float(outputs["loss"].mean())}
        shares: Float[np.ndarray, "g k k"] = outputs["called"].mean(0)
        for (group, _), own in zip(self.groups, shares, strict=True):
            for i, (name, _) in enumerate(self.transformations):
                accuracy = (own[i, i] + 1 - np.delete(own[:, i], i).mean()) / 2
                report[f"accuracy_{name}" if len(self.groups) == 1 else f"accuracy_{group}_{name}"] = float(accuracy)
        accuracies = {name: value for name, value in report.items() if name != "loss"}
        report["accuracy"] = float(np.mean(list(accuracies.values())))
        return report | {f"{name}_of_constant": 0.5 for name in ("accuracy", *accuracies)}, {}


def make(config, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> TransformationRecognition:
    """The objective of `config.objective`; UserError where its transformations are too few, too strong, or weighted wrongly."""
    names, weights = tuple(config.transformations), tuple(config.weights)
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"objective.transformations is {names}: name at least two, each once.")
    if len(weights) != len(names) or not sum(weights):
        raise UserError(f"objective.weights are {weights} for the {len(names)} objective.transformations: give one for each, not all 0.")
    frames = max(np.diff(fold.offsets).max(initial=0) for fold in corpus.folds.values())
    longest = frontend.stack * int(frontend.num_steps(frames))
    for name, field in (("permutation", "pieces"), ("time_warp", "warp_pieces")):
        if name in names and config[field] > longest:
            raise UserError(
                f"objective.{field} is {config[field]}, but the longest segment of {corpus.name} has {longest} frames: lower it, or leave "
                f"{name} out of objective.transformations."
            )
    strengths = {
        "noise": config.noise, "scaling": config.scaling, "permutation": config.pieces, "time_warp": (config.warp_pieces, config.warp),
        "crop_and_resize": config.crop, "magnitude_warp": config.magnitude,
    }  # fmt: skip
    groups = getattr(encoder, "groups", (("all", tuple(range(len(frontend.names)))),))
    own = tuple((name, strengths.get(name)) for name in names)
    return TransformationRecognition(
        encoder, groups, frontend.stack, own, weights, config.heads == "binary", config.reads, config.width, config.dropout
    )
