"""Which steps of a row are hidden from an encoder, random spans, and how those that are left are packed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def span_mask(key: jax.Array, num_steps: Int[Array, ""], length: int, ratio: float, span: int) -> Bool[Array, "t"]:
    """Masks about `ratio` of one row's valid steps, in spans of `span` steps.

    The row is cut into spans at a random phase and a random choice of them is masked, so that neighbouring
    ones may merge. Of two steps or more at least one stays visible; a row shorter than two spans has spans
    of half its length. At least one step is masked.
    """
    phase_key, choice_key, count_key = jax.random.split(key, 3)
    span = jnp.clip(num_steps // 2, 1, span)
    phase = jax.random.randint(phase_key, (), 0, span)
    block = (jnp.arange(length) + phase) // span
    blocks = (num_steps - 1 + phase) // span + 1
    count = jnp.floor(ratio * blocks + jax.random.uniform(count_key))
    count = jnp.maximum(1, jnp.minimum(count, blocks - 1))
    score = jax.random.uniform(choice_key, (length + 1,))
    score = jnp.where(jnp.arange(length + 1) < blocks, score, 2.0)
    rank = jnp.argsort(jnp.argsort(score))
    return (rank[block] < count) & (jnp.arange(length) < num_steps)


def span_masks(keys: jax.Array, num_steps: Int[Array, "b"], length: int, ratio: float, span: int) -> Bool[Array, "b t"]:
    """A mask of every row, drawn from its key."""
    return jax.vmap(lambda key, steps: span_mask(key, steps, length, ratio, span))(keys, jnp.asarray(num_steps))


def most_visible(length: int, ratio: float, span: int) -> int:
    """The most steps that `span_mask` may leave of any row of up to `length` steps, at least 1."""
    steps = np.arange(1, length + 1)
    span = np.clip(steps // 2, 1, span)
    blocks = (steps + 2 * (span - 1)) // span  # at the phase that has most
    hidden = np.floor(np.float32(ratio) * blocks.astype(np.float32)).astype(int)  # rounded as in `span_mask`
    visible = blocks - np.maximum(1, np.minimum(hidden, blocks - 1))
    return max(1, np.minimum(visible * span, steps - 1).max().item())


def pack(visible: Bool[Array, "b t"], most: int) -> tuple[Int[Array, "b v"], Int[Array, "b"]]:
    """Ascending positions of the visible steps of every row, which are `most` or fewer, and their number; the rest lie beyond the row."""
    steps = jnp.arange(visible.shape[1])
    return jnp.sort(jnp.where(visible, steps, len(steps) + steps), 1)[:, :most], visible.sum(1)


def packed(x: Float[Array, "b t d"], positions: Int[Array, "b v"]) -> Float[Array, "b v d"]:
    """The steps at these positions, 0 for those beyond the row."""
    return jnp.take_along_axis(x, positions[..., None], 1, mode="fill", fill_value=0)


def unpacked(x: Float[Array, "b v d"], positions: Int[Array, "b v"], length: int) -> Float[Array, "b t d"]:
    """Rows of this length with the steps at their positions and 0 elsewhere; those beyond the row are dropped."""

    def row(x, positions):  # by itself, so that rows which lie on several devices stay where they are
        return jnp.zeros((length, x.shape[1]), x.dtype).at[positions].set(x, mode="drop", unique_indices=True)

    return jax.vmap(row)(x, positions)
