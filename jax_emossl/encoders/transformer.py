"""A pre-norm transformer with rotary positions and a bias toward near steps.

Shapes: B rows, T model steps, D input width, W model width, H heads.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders import Encoded
from jax_emossl.layers import Dense, Dropout, valid_steps

_MASKED_SCORE = -1e9
_ROTARY_BASE = 1000.0
_WRONG_WAY = 4.0
_NEGLIGIBLE = 24.0  # nats of bias beyond which a key is not read
_FEWEST_CHUNKS = 4  # of a row, for a band of three to be worth it


def rotate(x: Float[Array, "b t *n k"], positions: Int[Array, "#b t"]) -> Float[Array, "b t *n k"]:
    """Rotary position embedding: attention then sees relative positions (Su et al. 2021, arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    frequency = _ROTARY_BASE ** (-jnp.arange(half) / half)
    angle = (positions[..., None] * frequency).reshape(*positions.shape, *[1] * (x.ndim - 3), half)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    halves_swapped = x.reshape(*x.shape[:-1], 2, half)[..., ::-1, :].reshape(x.shape)  # of slices, XLA would join value by value on CPU
    return (x * jnp.concatenate([cosine, cosine], -1) + halves_swapped * jnp.concatenate([-sine, sine], -1)).astype(x.dtype)


def in_steps(seconds: float, frontend: Frontend) -> float:
    """A time scale in model steps; to four digits, since a hop measured a little differently must not make another program."""
    return float(f"{seconds / frontend.step_seconds:.4g}")


def slopes(heads: int, near: float, far: float, causal: bool = False) -> tuple[float, ...]:
    """By how much a head's bias falls per step: its time scale grows from `near` to `far` steps; pairs share it, unless all look back."""
    alike = 1 if causal else 2
    return tuple((1 / np.geomspace(near, far, -(-heads // alike))).repeat(alike)[:heads].tolist())


def locality(distance: Int[Array, "*b q s"], slopes: Sequence[float], causal: bool = False) -> Float[Array, "*b h q s"]:
    """Bias of every head toward near steps, from the steps by which a key is ahead of a query: even heads look back, odd heads ahead.

    Linear in the distance as in ALiBi (Press et al. 2022, arXiv 2108.12409), here with a direction. Without
    it, learning to interpolate across a mask starts with a long plateau. Where it is causal, all heads look
    back, and no step sees one after it.
    """
    distance = distance[..., None, :, :]
    fall = -np.array(slopes, np.float32)[:, None, None] * jnp.abs(distance)
    if causal:
        return fall + _MASKED_SCORE * (distance > 0)
    head = np.arange(len(slopes))[:, None, None]
    return fall - _WRONG_WAY * jnp.where(head % 2 == 0, distance > 0, distance < 0)


def attend(
    query: Float[Array, "b t h k"], key: Float[Array, "b t h k"], value: Float[Array, "b t h k"],
    valid: Bool[Array, "b t"], positions: Int[Array, "#b t"], slopes: Sequence[float], causal: bool = False,
) -> Float[Array, "b t h k"]:  # fmt: skip
    """Softmax attention over valid steps with the bias toward near ones, at a cost that grows with the length, not with its square.

    A head reads the chunk of steps that a query lies in and the two beside it, a chunk being so long that the bias falls by
    `_NEGLIGIBLE` within it. What is left out weighs less than exp(d - 24) / slope of what is read, where d is by how much a score out
    there exceeds that of the query's own step. Rows of few such chunks are read whole, so all of them by heads that look far.
    The bias goes by `positions`, which ascend; where they skip steps, what is left out of the band lies only farther away.
    """
    length = query.shape[1]
    chunks = [math.ceil(_NEGLIGIBLE / slope) for slope in slopes]
    known = isinstance(length, int)  # an exported program learns its length later: it reads rows whole
    chunks = [chunk if known and length >= _FEWEST_CHUNKS * chunk else 0 for chunk in chunks]
    parts = []
    for chunk, heads in itertools.groupby(range(len(chunks)), chunks.__getitem__):
        first, *_, last = [*heads] * 2
        own, mixed = slice(first, last + 1), _in_band if chunk else _in_full
        parts.append(mixed(*(x[:, :, own] for x in (query, key, value)), valid, positions, slopes[own], chunk, causal))
    return jnp.concatenate(parts, 2)


def _in_full(query, key, value, valid, positions, slopes, _, causal):
    bias = locality(positions[:, None, :] - positions[:, :, None], slopes, causal) + jnp.where(valid, 0, _MASKED_SCORE)[:, None, None, :]
    return _mix(query, key, value, bias)


def _in_band(query, key, value, valid, positions, slopes, chunk, causal):
    length, missing = query.shape[1], -query.shape[1] % chunk

    def chunks(x):
        x = jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(x.shape[0], -1, chunk, *x.shape[2:])

    def with_neighbours(x):
        x = jnp.pad(chunks(x), ((0, 0), (1, 1), *[(0, 0)] * (x.ndim - 1)))
        return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], 2)

    distance = with_neighbours(positions)[..., None, :] - chunks(positions)[..., :, None]
    bias = locality(distance, slopes, causal) + jnp.where(with_neighbours(valid), 0, _MASKED_SCORE)[:, :, None, None, :]
    mixed = _mix(chunks(query), with_neighbours(key), with_neighbours(value), bias)
    return mixed.reshape(mixed.shape[0], -1, *mixed.shape[3:])[:, :length]


def _mix(query, key, value, bias):
    # On CPU, products are fastest of whole matrices that lie as they are multiplied: heads first, and keys transposed.
    query, key, value = (jnp.moveaxis(x, -2, -3) for x in (query, key, value))
    score = jnp.matmul(query, jnp.swapaxes(key, -1, -2), preferred_element_type=jnp.float32) + bias
    weight = jnp.exp(score - jax.lax.stop_gradient(score.max(-1, keepdims=True)))
    mixed = jnp.matmul(weight.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return jnp.moveaxis(mixed / weight.sum(-1, keepdims=True), -3, -2).astype(value.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over valid steps; a head has one of the slopes."""

    slopes: tuple[float, ...]
    dtype: str = "float32"
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t w"], valid: Bool[Array, "b t"], positions: Int[Array, "b t"] | None = None
    ) -> Float[Array, "b t w"]:
        batch, length, width = x.shape
        heads = len(self.slopes)
        positions = jnp.arange(length)[None] if positions is None else positions
        qkv = jnp.split(Dense(3 * width, dtype=self.dtype, name="qkv")(x), 3, -1)
        query, key, value = (part.reshape(batch, length, heads, width // heads) for part in qkv)
        query, key = rotate(query, positions), rotate(key, positions)
        mixed = attend(query / jnp.sqrt(query.shape[-1]), key, value, valid, positions, self.slopes, self.causal)
        return Dense(width, dtype=self.dtype, name="out")(mixed.reshape(batch, length, width))


class Layer(nn.Module):
    """Pre-norm transformer layer; the module that `attention` makes mixes the valid steps, told their positions where they skip some."""

    attention: Callable[[], nn.Module]
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t w"], valid: Bool[Array, "b t"], deterministic: bool, positions: Int[Array, "b t"] | None = None
    ) -> Float[Array, "b t w"]:
        drop = Dropout(self.dropout)
        x = x + drop(self.attention()(nn.LayerNorm()(x), valid, positions), deterministic)
        hidden = nn.gelu(Dense(4 * x.shape[-1], dtype=self.dtype)(nn.LayerNorm()(x)))
        return x + drop(Dense(x.shape[-1], dtype=self.dtype)(hidden), deterministic)


class Transformer(nn.Module):
    """Frame projection, mask embedding, and pre-norm layers; returns the residual stream before the first and after every layer.

    Attributes:
      near, far: steps at which attention falls by e, in the pair of heads that looks least and in that which looks most far.
      dtype: of the products of matrices; parameters, softmax, norms, sums and the residual stream are float32.
      remat: whether a layer's activations are computed anew for its gradient.
      causal: whether what it says of a step depends on that step and those before it only; every head then looks farther back.
    """

    width: int
    layers: int
    heads: int
    near: float = 2.0
    far: float = 8.0
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False
    causal: bool = False
    takes_positions = True

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b t d"],
        num_steps: Int[Array, "b"],
        masked: Bool[Array, "b t"] | None = None,
        deterministic: bool = True,
        positions: Int[Array, "b t"] | None = None,
    ) -> Encoded:
        """Encodes; steps that are `masked` are replaced by the mask embedding before anything sees them.

        Where some steps of a row are left out, `positions` say at which step of it each valid one lies, ascending.
        """
        mask_embedding = self.param("mask_embedding", nn.initializers.normal(0.02), (self.width,))
        x = Dense(self.width, dtype=self.dtype, name="projection")(features).astype(jnp.float32)
        if masked is not None:
            x = jnp.where(masked[..., None], mask_embedding, x)
        valid = valid_steps(num_steps, features.shape[1])
        layer = nn.remat(Layer, static_argnums=(3,)) if self.remat else Layer
        attention = functools.partial(Attention, slopes(self.heads, self.near, self.far, self.causal), self.dtype, self.causal)
        outputs = [x]
        for i in range(self.layers):
            x = layer(attention, self.dropout, self.dtype, name=f"layer_{i}")(x, valid, deterministic, positions)
            outputs.append(x)
        return Encoded(tuple(outputs), num_steps)


def make(model: ml_collections.ConfigDict, dropout: float, frontend: Frontend) -> Transformer:
    """The encoder of `config.model`."""
    near, far = in_steps(model.near, frontend), in_steps(model.far, frontend)
    return Transformer(model.width, model.layers, model.heads, near, far, dropout, model.dtype, model.remat, model.causal)
