import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_emossl.masking import most_visible, pack, packed, span_mask, span_masks, unpacked

LENGTH = 64


@functools.partial(jax.jit, static_argnames="rows")
def masks(num_steps, ratio, span, rows):
    return span_masks(jax.random.split(jax.random.key(0), rows), jnp.full(rows, num_steps), LENGTH, ratio, span)


def runs(mask):
    """Lengths of the masked runs that touch neither end of the row."""
    edges = np.flatnonzero(np.diff(mask.astype(int)))
    starts, ends = edges[mask[edges + 1]], edges[~mask[edges + 1]]
    return [end - start for start in starts for end in ends[ends > start][:1]]


@pytest.mark.parametrize("ratio", [0.15, 0.5, 0.85])
@pytest.mark.parametrize("span", [1, 5, 20])
def test_a_mask_hides_and_shows_something_and_spares_the_padding(ratio, span):
    for n in (1, 2, 3, 5, 8, 19, 40, LENGTH):
        masked = np.asarray(masks(n, ratio, span, rows=300))
        assert not masked[:, n:].any()
        assert masked[:, :n].any(1).all()
        if n > 1:
            assert not masked[:, :n].all(1).any()


@pytest.mark.parametrize(("number", "span"), [(1, 3), (7, 3), (40, 10), (40, 1)])
def test_a_mask_does_not_depend_on_padding(number, span):
    short, padded = (span_mask(jax.random.key(7), number, length, 0.5, span)[:number] for length in (40, LENGTH))
    np.testing.assert_array_equal(short, padded)


@pytest.mark.parametrize(("ratio", "span"), [(0.15, 1), (0.5, 1), (0.85, 1), (0.15, 5), (0.5, 5), (0.75, 10)])
def test_the_share_of_masked_steps_is_as_configured(ratio, span):
    assert np.asarray(masks(LENGTH, ratio, span, rows=3000)).mean() == pytest.approx(ratio, abs=0.02)


def test_every_step_is_masked_about_equally_often():
    often = np.asarray(masks(50, 0.5, 5, rows=3000))[:, :50].mean(0)
    assert often.min() > 0.42 and often.max() < 0.58


@pytest.mark.parametrize("span", [1, 5])
def test_steps_are_masked_in_whole_spans(span):
    lengths = np.concatenate([runs(mask) for mask in np.asarray(masks(LENGTH, 0.3, span, rows=200))]).astype(int)
    assert len(lengths) > 100 and not (lengths % span).any()
    assert np.mean(lengths == span) > 0.5


@pytest.mark.parametrize("ratio", [0.15, 0.75, 0.85])
@pytest.mark.parametrize("span", [1, 5, 20])
def test_an_exact_mask_hides_the_same_number_of_steps_for_every_key(ratio, span):
    num_steps = np.tile(np.arange(1, LENGTH + 1), 50)
    keys = jax.random.split(jax.random.key(0), len(num_steps))
    masked = np.asarray(jax.jit(lambda keys, num_steps: span_masks(keys, num_steps, LENGTH, ratio, span, True))(keys, num_steps))
    assert not (masked & (np.arange(LENGTH) >= num_steps[:, None])).any()
    hidden = np.clip(np.round(ratio * num_steps), 1, np.maximum(num_steps - 1, 1))
    np.testing.assert_array_equal(masked.sum(1), hidden)
    for length in (1, 2, 3, 7, 30, LENGTH):
        assert most_visible(length, ratio) == max(1, (num_steps - hidden)[num_steps <= length].max())


@pytest.mark.parametrize("exact", [False, True])
def test_a_row_of_many_minutes_is_masked_as_any_other(exact):
    """Its squared length is beyond 32 bits."""
    masked = np.asarray(span_mask(jax.random.key(0), jnp.int32(50_000), 50_000, 0.75, 8, exact))
    runs = np.diff(np.flatnonzero(np.diff(masked.astype(int), prepend=0, append=0)))[::2]
    assert masked.mean() == pytest.approx(0.75, abs=1e-3) and np.mean(runs % 8 == 0) > 0.99


def test_an_exact_mask_has_whole_spans_but_for_one_that_is_cut():
    keys = jax.random.split(jax.random.key(1), 400)
    exact = np.asarray(span_masks(keys, jnp.full(400, LENGTH), LENGTH, 0.5, 5, True))
    lengths = [[length % 5 for length in runs(mask)] for mask in exact]
    assert max(sum(rest > 0 for rest in row) for row in lengths) == 1 and exact[:, 10:-10].mean(0).std() < 0.05


def test_an_exact_mask_does_not_depend_on_padding():
    short, padded = (span_mask(jax.random.key(7), 40, length, 0.5, 7, True)[:40] for length in (40, LENGTH))
    np.testing.assert_array_equal(short, padded)


def test_visible_steps_are_packed_in_order_and_return_to_their_places():
    visible = np.array([[0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
    x = np.random.default_rng(0).normal(size=(3, 6, 2)).astype(np.float32)
    positions, number = pack(visible, 4)
    assert number.tolist() == [3, 0, 1] and positions[0, :3].tolist() == [1, 4, 5] and positions[2, 0] == 0
    assert (np.asarray(positions)[np.arange(4) >= np.asarray(number)[:, None]] >= 6).all()
    together = np.asarray(packed(np.where(visible[..., None], x, np.nan), positions))
    np.testing.assert_array_equal(together[0], [*x[0, [1, 4, 5]], [0, 0]])
    np.testing.assert_array_equal(unpacked(together + 1, positions, 6), np.where(visible[..., None], x + 1, 0))
