"""Networks that turn features into representations: one file each, found by its name (`config.model.name`).

A file `encoders/<name>.py` offers `make(model, dropout, frontend)`, where `model` is `config.model` and `frontend` knows the features; it
returns a Flax module that is called as `Encoder` says. Its parameters are the subtree `encoder` of every objective's.
"""

import importlib
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data.frontend import Frontend
from jax_emossl.errors import UserError
from jax_emossl.layers import pool_statistics


class Encoded(NamedTuple):
    """What an encoder says of B rows.

    Attributes:
      layers: representations (B, T, W) that heads read, of one W or several; the last is the network's output.
      num_steps: (B,) valid steps of each.
      summary: (B, W) one vector per row, where the network has one.
    """

    layers: tuple[Float[Array, "b t w"], ...]
    num_steps: Int[Array, "b"]
    summary: Float[Array, "b w"] | None = None

    def pooled(self) -> Float[Array, "b p"]:
        """Mean and deviation of every layer over the valid steps, and the summary where there is one."""
        statistics = pool_statistics(self.layers, self.num_steps)
        return statistics if self.summary is None else jnp.concatenate([statistics, self.summary], -1)

    def read(self, what: str) -> Float[Array, "b p"]:
        """What a head is given: all that is `pooled` of the `encoder`, or its `summary` alone (UserError where it has none)."""
        if what == "summary" and self.summary is None:
            raise UserError(
                "objective.reads is 'summary', but the encoder of model.name has none: choose conv_transformer or temporal_conv, or reads=encoder."
            )
        return self.summary if what == "summary" else self.pooled()

    def part(self, i: int, of: int) -> "Encoded":
        """The i-th of equal parts into which every representation's width falls: what an encoder of several `groups` says of one."""
        summary = None if self.summary is None else jnp.split(self.summary, of, -1)[i]
        return Encoded(tuple(jnp.split(layer, of, -1)[i] for layer in self.layers), self.num_steps, summary)


class Encoder(Protocol):
    """A Flax module; what it says of a row depends neither on other rows nor on padding.

    It may have `groups`: names of features' groups, each with its places among a frame's features. What it says of them then lies
    side by side (`Encoded.part`).

    Attributes:
      causal: whether what it says of a step depends on that step and those before it only; an encoder without that attribute sees ahead.
      takes_positions: whether it can encode some steps of a row alone: its call then has the further argument `positions` (B, T), at which
        step of its row each valid one lies, ascending; None = one after another. Other fields `width` and `layers` make a smaller one.
    """

    causal: bool = False
    takes_positions: bool = False

    def __call__(
        self,
        features: Float[Array, "b t d"],
        num_steps: Int[Array, "b"],
        masked: Bool[Array, "b t"] | None = None,
        deterministic: bool = True,
    ) -> Encoded:
        """Encodes; steps that are `masked` are hidden before anything sees them."""


def make(model: ml_collections.ConfigDict, dropout: float, frontend: Frontend) -> nn.Module:
    """The encoder that `model.name` names, for features that come through this frontend; UserError where it should be causal and cannot."""
    encoder = importlib.import_module(f"{__name__}.{model.name}").make(model, dropout, frontend)
    if model.get("causal", False) and not getattr(encoder, "causal", False):  # only some encoders have the field
        raise UserError(f"model.causal is True, but the encoder {model.name} always sees ahead: choose another model.name.")
    return encoder
