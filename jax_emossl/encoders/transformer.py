"""A pre-norm transformer with rotary positions and a bias toward near steps.

Shapes: B rows, T model steps, D input width, W model width, H heads.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.encoders import Encoded
from jax_emossl.layers import Dense, Dropout, valid_steps

_MASKED_SCORE = -1e9
_ROTARY_BASE = 1000.0
_WRONG_WAY = 4.0


def rotate(x: Float[Array, "b t *n k"]) -> Float[Array, "b t *n k"]:
    """Rotary position embedding: attention then sees relative positions (Su et al. 2021, arXiv 2104.09864)."""
    length, half = x.shape[1], x.shape[-1] // 2
    frequency = _ROTARY_BASE ** (-jnp.arange(half) / half)
    angle = (jnp.arange(length)[:, None] * frequency).reshape(length, *[1] * (x.ndim - 3), half)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    halves_swapped = jnp.roll(x, half, -1)
    return x * jnp.concatenate([cosine, cosine], -1) + halves_swapped * jnp.concatenate([-sine, sine], -1)


def locality(length: int, heads: int, causal: bool = False) -> Float[Array, "h t t"]:
    """Bias of every head toward near steps: even heads look back, odd heads ahead, the later ones farther.

    Linear in the distance as in ALiBi (Press et al. 2022, arXiv 2108.12409), here with a direction. Without
    it, learning to interpolate across a mask starts with a long plateau. Where it is causal, all heads look
    back, each farther than the one before, and no step sees one after it.
    """
    distance = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    head = jnp.arange(heads)[:, None, None]
    if causal:
        return -(0.5 ** (1 + head)) * jnp.abs(distance) + _MASKED_SCORE * (distance > 0)
    ahead = jnp.where(head % 2 == 0, distance > 0, distance < 0)
    return -(0.5 ** (1 + 2 * (head // 2))) * jnp.abs(distance) - _WRONG_WAY * ahead


class Attention(nn.Module):
    """Multi-head self-attention over valid steps."""

    heads: int
    causal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"], valid: Bool[Array, "b t"]) -> Float[Array, "b t w"]:
        batch, length, width = x.shape
        qkv = Dense(3 * width, name="qkv")(x).reshape(batch, length, 3, self.heads, width // self.heads)
        (query, key), value = jnp.moveaxis(rotate(qkv[:, :, :2]), 2, 0), qkv[:, :, 2]
        score = jnp.einsum("bqhk,bshk->bhqs", query / jnp.sqrt(query.shape[-1]), key)
        score = score + locality(length, self.heads, self.causal) + jnp.where(valid, 0, _MASKED_SCORE)[:, None, None, :]
        weight = jax.nn.softmax(score)
        mixed = jnp.einsum("bhqs,bshk->bqhk", weight, value).reshape(batch, length, width)
        return Dense(width, name="out")(mixed)


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    heads: int
    dropout: float
    causal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"], valid: Bool[Array, "b t"], deterministic: bool) -> Float[Array, "b t w"]:
        drop = Dropout(self.dropout)
        x = x + drop(Attention(self.heads, self.causal)(nn.LayerNorm()(x), valid), deterministic)
        hidden = nn.gelu(Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + drop(Dense(x.shape[-1])(hidden), deterministic)


class Transformer(nn.Module):
    """Frame projection, mask embedding, and pre-norm layers; returns the residual stream before the first and after every layer.

    Where it is `causal`, what it says of a step depends on that step and those before it only.
    """

    width: int
    layers: int
    heads: int
    dropout: float = 0.0
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b t d"],
        num_steps: Int[Array, "b"],
        masked: Bool[Array, "b t"] | None = None,
        deterministic: bool = True,
    ) -> Encoded:
        """Encodes; steps that are `masked` are replaced by the mask embedding before anything sees them."""
        mask_embedding = self.param("mask_embedding", nn.initializers.normal(0.02), (self.width,))
        x = Dense(self.width, name="projection")(features)
        if masked is not None:
            x = jnp.where(masked[..., None], mask_embedding, x)
        valid = valid_steps(num_steps, features.shape[1])
        outputs = [x]
        for i in range(self.layers):
            x = Layer(self.heads, self.dropout, self.causal, name=f"layer_{i}")(x, valid, deterministic)
            outputs.append(x)
        return Encoded(tuple(outputs), num_steps)


def make(model: ml_collections.ConfigDict, dropout: float) -> Transformer:
    """The encoder of `config.model`."""
    return Transformer(model.width, model.layers, model.heads, dropout, model.get("causal", False))
