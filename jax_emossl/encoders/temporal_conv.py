"""The convolutional trunk of Sarkar & Etemad 2020 (arXiv 2002.03898): pairs of convolutions with pooling between, and a global maximum.

Shapes: B rows, T model steps, D input width, W width of a block.
"""

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders import Encoded
from jax_emossl.layers import Convolution, Dropout, valid_steps

_WINDOW, _STRIDE = 8, 2  # steps, of the pooling


def pool(x: Float[Array, "b t w"], valid: Bool[Array, "b t"]) -> Float[Array, "b u w"]:
    """The largest valid values of windows of 8 steps, one window every 2 steps; even a row of one step has some."""
    around = (_WINDOW - _STRIDE) // 2, _WINDOW // 2  # so that every second step has a window, of an odd number, too
    return nn.max_pool(jnp.where(valid[..., None], x, -jnp.inf), (_WINDOW,), (_STRIDE,), [around])


class TemporalConv(nn.Module):
    """Blocks of two convolutions: each has twice the channels and half the kernel of the one before, and sees every second step.

    The steps of later blocks are repeated, so that every representation has the features' T steps; the summary is the last
    block's maximum over a row.
    """

    width: int
    layers: int
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
        """Encodes; steps that are `masked` are replaced by a learned one before anything sees them."""
        length = features.shape[1]
        mask_embedding = self.param("mask_embedding", nn.initializers.normal(0.02), features.shape[-1:])
        x = features if masked is None else jnp.where(masked[..., None], mask_embedding, features)
        outputs, left = [], num_steps
        valid = valid_steps(left, length)
        for i in range(self.layers):
            if i:
                x, left = pool(x, valid), -(-left // _STRIDE)
                valid = valid_steps(left, x.shape[1])
                x = jnp.where(valid[..., None], x, 0)
            for _ in range(2):
                x = nn.relu(Convolution(self.width * 2**i, max(1, self.kernel // 2**i))(x, valid))
            x = Dropout(self.dropout)(x, deterministic)
            outputs.append(jnp.repeat(x, _STRIDE**i, 1)[:, :length])
        return Encoded(tuple(outputs), num_steps, jnp.where(valid[..., None], x, 0).max(1))


def make(model: ml_collections.ConfigDict, dropout: float, frontend: Frontend) -> TemporalConv:
    """The encoder of `config.model`."""
    return TemporalConv(model.width, model.layers, model.kernel, dropout)
