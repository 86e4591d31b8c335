"""The tf.data pipeline: gathers by the same indices as in-memory training, and prefetches.

The only module of training that needs TensorFlow, which it imports when called.
"""

from collections.abc import Iterator

import numpy as np

from jax_emossl.data.batches import Batch, Segments
from jax_emossl.data.indices import Sampler
from jax_emossl.errors import UserError


def tf_data(segments: Segments, sampler: Sampler, seed: int, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps start..stop-1, prepared in the background, equal to `batches.in_memory`'s; UserError without TensorFlow."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            "data.loader is 'tf.data', but TensorFlow is not installed: install it or give --config.data.loader=memory."
        ) from error

    tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
    example = segments.gather(sampler.indices(seed, start))
    types = [tf.as_dtype(array.dtype) for array in example.values()]
    shapes = [(len(array), None, array.shape[2]) if array.ndim == 3 else array.shape for array in example.values()]

    def gather(step: np.ndarray) -> list[np.ndarray]:
        return list(segments.gather(sampler.indices(seed, int(step))).values())

    def assemble(step):
        arrays = tf.numpy_function(gather, [step], types)
        for array, shape in zip(arrays, shapes, strict=True):
            array.set_shape(shape)
        return dict(zip(example, arrays, strict=True))

    dataset = tf.data.Dataset.range(start, stop).map(assemble, num_parallel_calls=2, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
