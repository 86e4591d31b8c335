"""The transformer encoder and its heads (Flax linen); they know arrays only.

Shapes: B rows, T model steps, D input width, W model width, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

_MASKED_SCORE = -1e9
_ROTARY_BASE = 1000.0
_WRONG_WAY = 4.0


def valid_steps(num_frames: Int[Array, "b"], length: int) -> Bool[Array, "b t"]:
    """True for the first `num_frames` steps of every row, False for padding."""
    return jnp.arange(length) < num_frames[:, None]


class Dense(nn.Dense):
    """nn.Dense over the last axis with all others merged: on CPU XLA runs that as one matrix product."""

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b w"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class Dropout(nn.Module):
    """Inverted dropout drawn from random bytes, a quarter of the bits nn.Dropout asks for.

    The rate is rounded to a multiple of 1/256.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*s"], deterministic: bool) -> Float[Array, "*s"]:
        dropped = round(self.rate * 256)
        if deterministic or dropped == 0:
            return x
        keep = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint8) >= dropped
        return jnp.where(keep, x * (256 / (256 - dropped)), 0.0)


def rotate(x: Float[Array, "b t h k"]) -> Float[Array, "b t h k"]:
    """Rotary position embedding: attention then sees relative positions (Su et al. 2021, arXiv 2104.09864)."""
    length, half = x.shape[1], x.shape[-1] // 2
    frequency = _ROTARY_BASE ** (-jnp.arange(half) / half)
    angle = jnp.arange(length)[:, None, None] * frequency
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1)


def locality(length: int, heads: int) -> Float[np.ndarray, "h t t"]:
    """Bias of every head toward near steps: even heads look back, odd heads ahead, the later ones farther.

    Linear in the distance as in ALiBi (Press et al. 2022, arXiv 2108.12409), here with a direction. Without
    it, learning to interpolate across a mask starts with a long plateau.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    head = np.arange(heads)[:, None, None]
    ahead = np.where(head % 2 == 0, distance > 0, distance < 0)
    return (-(0.5 ** (1 + 2 * (head // 2))) * np.abs(distance) - _WRONG_WAY * ahead).astype(np.float32)


class Attention(nn.Module):
    """Multi-head self-attention over valid steps."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"], valid: Bool[Array, "b t"]) -> Float[Array, "b t w"]:
        batch, length, width = x.shape
        qkv = Dense(3 * width, name="qkv")(x).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = rotate(qkv[:, :, 0]), rotate(qkv[:, :, 1]), qkv[:, :, 2]
        score = jnp.einsum("bqhk,bshk->bhqs", query, key) / jnp.sqrt(query.shape[-1])
        score = score + locality(length, self.heads)
        score = jnp.where(valid[:, None, None, :], score, _MASKED_SCORE)
        weight = jax.nn.softmax(score)
        mixed = jnp.einsum("bhqs,bshk->bqhk", weight, value).reshape(batch, length, width)
        return Dense(width, name="out")(mixed)


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "b t w"], valid: Bool[Array, "b t"], deterministic: bool) -> Float[Array, "b t w"]:
        drop = Dropout(self.dropout)
        x = x + drop(Attention(self.heads)(nn.LayerNorm()(x), valid), deterministic)
        hidden = nn.gelu(Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + drop(Dense(x.shape[-1])(hidden), deterministic)


class TransformerEncoder(nn.Module):
    """Frame projection, mask embedding, and pre-norm transformer layers.

    Returns the residual stream before the first layer and after every layer: the representations that
    heads read.
    """

    width: int
    layers: int
    heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b t d"],
        num_frames: Int[Array, "b"],
        masked: Bool[Array, "b t"] | None = None,
        deterministic: bool = True,
    ) -> list[Float[Array, "b t w"]]:
        """Encodes; steps that are `masked` are replaced by the mask embedding before anything sees them."""
        mask_embedding = self.param("mask_embedding", nn.initializers.normal(0.02), (self.width,))
        x = Dense(self.width, name="projection")(features)
        if masked is not None:
            x = jnp.where(masked[..., None], mask_embedding, x)
        valid = valid_steps(num_frames, features.shape[1])
        outputs = [x]
        for i in range(self.layers):
            x = Layer(self.heads, self.dropout, name=f"layer_{i}")(x, valid, deterministic)
            outputs.append(x)
        return outputs


class Reconstruction(nn.Module):
    """Predicts the features of every step from the last layer."""

    @nn.compact
    def __call__(self, outputs: Sequence[Float[Array, "b t w"]], dimension: int) -> Float[Array, "b t d"]:
        return Dense(dimension)(nn.LayerNorm()(outputs[-1]))


def pool_statistics(outputs: Sequence[Float[Array, "b t w"]], num_frames: Int[Array, "b"]) -> Float[Array, "b p"]:
    """Mean and standard deviation over the valid steps of every layer's output, P = 2 (L + 1) W."""
    stream = jnp.concatenate(list(outputs), -1)
    valid = valid_steps(num_frames, stream.shape[1])[..., None]
    count = jnp.maximum(num_frames, 1)[:, None]
    mean = jnp.sum(jnp.where(valid, stream, 0), 1) / count
    variance = jnp.sum(jnp.where(valid, (stream - mean[:, None]) ** 2, 0), 1) / count
    return jnp.concatenate([mean, jnp.sqrt(variance + 1e-5)], -1)


class SegmentHead(nn.Module):
    """Linear read-out of standardised pooled statistics; it starts at 0."""

    outputs: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, standardised: Float[Array, "b p"], deterministic: bool = True) -> Float[Array, "b o"]:
        x = Dropout(self.dropout)(standardised, deterministic)
        return Dense(self.outputs, kernel_init=nn.initializers.zeros, name="readout")(x)
