"""Transformations of signals that a network can learn to recognise (Sarkar & Etemad 2020, arXiv 2002.03898).

Each is a pure function of (key, row, number, strength): of a row (N, F) the first `number` frames are transformed, and 0 is returned
beyond. Those without a strength ignore it, those without chance the key.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Row = Float[Array, "n f"]
Transformation = Callable[[jax.Array, Row, Int[Array, ""], float | tuple], Row]
_KNOTS = 6  # of the curves by which magnitudes are warped, both ends among them
# The second derivatives of the natural cubic spline through values one apart: _BENDS @ values.
_SECOND_DIFFERENCES = np.diff(np.eye(_KNOTS), 2, axis=0)
_INNER = np.linalg.solve(np.eye(_KNOTS - 2) * 2 / 3 + (np.eye(_KNOTS - 2, k=1) + np.eye(_KNOTS - 2, k=-1)) / 6, _SECOND_DIFFERENCES)
_BENDS = np.pad(_INNER, ((1, 1), (0, 0)))


def original(key: jax.Array, row: Row, number: Int[Array, ""], strength: None = None) -> Row:
    """The row as it is."""
    return _valid(row, number)


def noise(key: jax.Array, row: Row, number: Int[Array, ""], strength: float) -> Row:
    """White Gaussian noise added to each feature, at this ratio (dB) of the row's power to the noise's."""
    power = jnp.sum(_valid(row, number) ** 2, 0) / number
    return _valid(row + jnp.sqrt(power / 10 ** (strength / 10)) * jax.random.normal(key, row.shape), number)


def scaling(key: jax.Array, row: Row, number: Int[Array, ""], strength: float) -> Row:
    """Every value times this factor."""
    return _valid(row * strength, number)


def negation(key: jax.Array, row: Row, number: Int[Array, ""], strength: None = None) -> Row:
    """Every value with the other sign."""
    return _valid(-row, number)


def inversion(key: jax.Array, row: Row, number: Int[Array, ""], strength: None = None) -> Row:
    """The frames from the last to the first."""
    return _valid(row[jnp.clip(number - 1 - jnp.arange(len(row)), 0)], number)


def permutation(key: jax.Array, row: Row, number: Int[Array, ""], strength: float) -> Row:
    """So many pieces, as equal as can be, in random order; no piece is shorter than a frame."""
    pieces = round(strength)
    piece = jnp.arange(len(row)) * jnp.minimum(pieces, number) // jnp.maximum(number, 1)
    rank = jax.random.permutation(key, pieces)[jnp.minimum(piece, pieces - 1)]
    order = jnp.argsort(jnp.where(jnp.arange(len(row)) < number, rank, pieces), stable=True)
    return _valid(row[order], number)


def time_warp(key: jax.Array, row: Row, number: Int[Array, ""], strength: tuple[float, float]) -> Row:
    """Of so many equal pieces a random half is stretched by a factor and the others squeezed by it; the row keeps its length.

    `strength` is (pieces, factor). Values between frames are interpolated.
    """
    pieces, factor = round(strength[0]), strength[1]
    stretched = jax.random.permutation(key, pieces) < pieces // 2
    after = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.where(stretched, factor, 1 / factor))])
    place = jnp.interp(_share(row, number), after / after[-1], jnp.arange(pieces + 1) / pieces)
    return _valid(_between(row, number, place), number)


def crop_and_resize(key: jax.Array, row: Row, number: Int[Array, ""], strength: float) -> Row:
    """A piece that is this share of the row, at a random place, stretched to the row's length."""
    start = jax.random.uniform(key) * (1 - strength)
    return _valid(_between(row, number, start + strength * _share(row, number)), number)


def magnitude_warp(key: jax.Array, row: Row, number: Int[Array, ""], strength: float) -> Row:
    """Each feature times a smooth curve of its own: a cubic spline through random factors around 1, of this deviation (Um et al. 2017)."""
    factors = 1 + strength * jax.random.normal(key, (_KNOTS, row.shape[1]))
    return _valid(row * spline(factors, _share(row, number) * (_KNOTS - 1)), number)


def spline(values: Float[Array, "k f"], x: Float[Array, "n"]) -> Float[Array, "n f"]:
    """The natural cubic spline through `values` at 0, 1, ..., at places x among these."""
    left = jnp.clip(jnp.floor(x).astype(jnp.int32), 0, _KNOTS - 2)
    b = (x - left)[:, None]
    a, bends = 1 - b, jnp.asarray(_BENDS, values.dtype) @ values
    return a * values[left] + b * values[left + 1] + ((a**3 - a) * bends[left] + (b**3 - b) * bends[left + 1]) / 6


def _valid(row: Row, number: Int[Array, ""]) -> Row:
    return jnp.where(jnp.arange(len(row))[:, None] < number, row, 0)


def _share(row: Row, number: Int[Array, ""]) -> Float[Array, "n"]:
    """Of every frame, how far along the row it lies, in [0, 1]."""
    return jnp.clip(jnp.arange(len(row)) / jnp.maximum(number - 1, 1), 0, 1)


def _between(row: Row, number: Int[Array, ""], share: Float[Array, "n"]) -> Row:
    """The row's values at these shares of its way, by linear interpolation between frames."""
    place = jnp.clip(share * (number - 1), 0, number - 1)
    left = jnp.floor(place).astype(jnp.int32)
    rest = (place - left)[:, None]
    return (1 - rest) * row[left] + rest * row[jnp.minimum(left + 1, number - 1)]


TRANSFORMATIONS: dict[str, Transformation] = {
    own.__name__: own for own in (original, noise, scaling, negation, inversion, permutation, time_warp, crop_and_resize, magnitude_warp)
}
