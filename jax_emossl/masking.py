"""Which steps of a row are hidden from an encoder, random spans, and how those that are left are packed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def span_mask(key: jax.Array, num_steps: Int[Array, ""], length: int, ratio: float, span: int, exact: bool = False) -> Bool[Array, "t"]:
    """Masks about `ratio` of one row's valid steps, in spans of `span` steps.

    The row is cut into spans at a random phase and a random choice of them is masked, so that neighbouring
    ones may merge. Of two steps or more at least one stays visible; a row shorter than two spans has spans
    of half its length. At least one step is masked. Where it must be `exact`, as many steps are masked as
    `ratio` says, to the nearest whole one, of the last span only the first.
    """
    phase_key, choice_key, count_key = jax.random.split(key, 3)
    span = jnp.clip(num_steps // 2, 1, span)
    phase = jax.random.randint(phase_key, (), 0, span)
    steps = jnp.arange(length)
    block = (steps + phase) // span
    blocks = (num_steps - 1 + phase) // span + 1
    score = jax.random.uniform(choice_key, (length + 1,))
    score = jnp.where(jnp.arange(length + 1) < blocks, score, 2.0)
    rank = _places(jnp.argsort(score))[block]
    valid = steps < num_steps
    if exact:
        place = _places(jnp.argsort(jnp.where(valid, rank, length + 1)))
        return (place < _hidden(num_steps, ratio)) & valid
    count = jnp.floor(ratio * blocks + jax.random.uniform(count_key))
    return (rank < jnp.maximum(1, jnp.minimum(count, blocks - 1))) & valid


def _places(order: Int[Array, "n"]) -> Int[Array, "n"]:
    """Where each of 0..n-1 stands in an order of them; on CPU this takes less than a second argsort."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(len(order)), unique_indices=True)


def _hidden(num_steps, ratio, of=jnp):
    return of.maximum(1, of.minimum(of.round(np.float32(ratio) * num_steps), num_steps - 1)).astype(int)


def span_masks(
    keys: jax.Array, num_steps: Int[Array, "b"], length: int, ratio: float, span: int, exact: bool = False
) -> Bool[Array, "b t"]:
    """A mask of every row, drawn from its key."""
    return jax.vmap(lambda key, steps: span_mask(key, steps, length, ratio, span, exact))(keys, jnp.asarray(num_steps))


def most_visible(length: int, ratio: float) -> int:
    """The most steps that an exact `span_mask` leaves of a row of up to `length` steps, at least 1."""
    return max(1, length - _hidden(length, ratio, np).item())


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
