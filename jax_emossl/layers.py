"""Parts that encoders and objectives share (Flax linen); they know arrays only.

Shapes: B rows, T model steps, W width, L layers.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8


def valid_steps(num_steps: Int[Array, "b"], length: int) -> Bool[Array, "b t"]:
    """True for the first `num_steps` steps of every row, False for padding."""
    return jnp.arange(length) < num_steps[:, None]


class Dense(nn.Dense):
    """nn.Dense over the last axis with all others merged: on CPU XLA runs that as one matrix product."""

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b w"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class Convolution(nn.Module):
    """Convolution over time that reads zeros beyond the valid steps, as at the end of an array, whatever the padding holds."""

    features: int
    kernel: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"]) -> Float[Array, "b t w"]:
        return nn.Conv(self.features, (self.kernel,))(jnp.where(valid[..., None], x, 0))


class Dropout(nn.Module):
    """Inverted dropout drawn from random bytes, a quarter of the bits nn.Dropout asks for.

    The rate is rounded to a multiple of 1/256. What is dropped of a step does not depend on how many follow it, padding or not.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b *s"], deterministic: bool) -> Float[Array, "b *s"]:
        dropped = round(self.rate * 256)
        if deterministic or dropped == 0:
            return x
        # A byte goes by its place in the array: with time first, padding comes after all else.
        keep = jnp.swapaxes(_random_bytes(self.make_rng("dropout"), (*x.shape[:2][::-1], *x.shape[2:])), 0, 1) >= dropped
        return jnp.where(keep, x * (256 / (256 - dropped)), 0.0)


def _random_bytes(key: Key[Array, ""], shape: Sequence[int]) -> UInt8[Array, "..."]:
    """Four of every random number: JAX by itself draws a number of 32 bits for each byte."""
    drawn = jax.random.bits(key, (-(-math.prod(shape) // 4),))
    return jax.lax.bitcast_convert_type(drawn, jnp.uint8).reshape(-1)[: math.prod(shape)].reshape(shape)


def pool_statistics(layers: Sequence[Float[Array, "b t w"]], num_steps: Int[Array, "b"]) -> Float[Array, "b p"]:
    """Mean and standard deviation over the valid steps of every layer's output, P = 2 (L + 1) W."""
    stream = jnp.concatenate(list(layers), -1)
    valid = valid_steps(num_steps, stream.shape[1])[..., None]
    count = jnp.maximum(num_steps, 1)[:, None]
    mean = jnp.sum(jnp.where(valid, stream, 0), 1) / count
    variance = jnp.sum(jnp.where(valid, (stream - mean[:, None]) ** 2, 0), 1) / count
    return jnp.concatenate([mean, jnp.sqrt(variance + 1e-5)], -1)
