"""Which steps of a row are hidden from an encoder: random spans."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


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
