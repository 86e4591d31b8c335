"""Convolutions over time, then a transformer with a learned [CLS], as Vazquez-Rodriguez et al. 2022 (arXiv 2204.05103) encode signals.

Shapes: B rows, T model steps, D input width, W model width.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders import Encoded
from jax_emossl.encoders.transformer import Layer
from jax_emossl.layers import Convolution, valid_steps

_LONGEST_WAVE = 10_000.0


def positions(length: int, width: int) -> Float[Array, "t w"]:
    """Sines and cosines of each step's place (Vaswani et al. 2017, arXiv 1706.03762)."""
    angle = jnp.arange(length)[:, None] * _LONGEST_WAVE ** (-jnp.arange(0, width, 2) / width)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class GlobalAttention(nn.Module):
    """Multi-head self-attention over valid steps, wherever they lie: [CLS] is near to none."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"], valid: Bool[Array, "b t"], positions: None = None) -> Float[Array, "b t w"]:
        return nn.MultiHeadDotProductAttention(self.heads)(x, mask=valid[:, None, None, :])


class ConvTransformer(nn.Module):
    """Convolutional stem, [CLS] before its steps, and pre-norm layers; the stem's and every layer's steps, and [CLS] as the summary."""

    width: int
    layers: int
    heads: int
    conv_layers: int
    kernel: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b t d"],
        num_steps: Int[Array, "b"],
        masked: Bool[Array, "b t"] | None = None,
        deterministic: bool = True,
    ) -> Encoded:
        """Encodes; steps that are `masked` are replaced by a learned one before the stem sees them."""
        valid = valid_steps(num_steps, features.shape[1])
        mask_embedding = self.param("mask_embedding", nn.initializers.normal(0.02), features.shape[-1:])
        x = features if masked is None else jnp.where(masked[..., None], mask_embedding, features)
        for i in range(self.conv_layers):
            x = nn.gelu(nn.LayerNorm()(Convolution(self.width, self.kernel, name=f"stem_{i}")(x, valid)))
        outputs = [x]
        cls = self.param("cls", nn.initializers.normal(0.02), (self.width,))
        x = x + positions(x.shape[1], self.width)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], 1)
        valid = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        attention = functools.partial(GlobalAttention, self.heads)
        for i in range(self.layers):
            x = Layer(attention, self.dropout, name=f"layer_{i}")(x, valid, deterministic)
            outputs.append(x[:, 1:])
        return Encoded(tuple(outputs), num_steps, nn.LayerNorm()(x[:, 0]))


def make(model: ml_collections.ConfigDict, dropout: float, frontend: Frontend) -> ConvTransformer:
    """The encoder of `config.model`."""
    return ConvTransformer(model.width, model.layers, model.heads, model.conv_layers, model.kernel, dropout)
