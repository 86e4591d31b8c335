"""A prepared corpus as a TFDS dataset, for streaming from buckets and for TFDS users.

TensorFlow and TensorFlow Datasets are imported when called: nothing else in the data path needs them.
"""

import contextlib
import importlib.util
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jax_emossl.data.prepared import Corpus, Fold
from jax_emossl.errors import UserError

VERSION = "1.0.0"
# TFDS 4.9.10 imports importlib_resources without depending on it on Python 3.11.
_NEEDED = ("tensorflow", "tensorflow_datasets", "importlib_resources")


def require() -> None:
    """Raises UserError where a package that the export needs is missing."""
    for name in (name for name in _NEEDED if importlib.util.find_spec(name) is None):
        mend = "pip install tensorflow-cpu tensorflow-datasets importlib_resources, or leave out --tfds"
        raise UserError(f"A TFDS dataset needs the package {name}, which is not installed: {mend}.")


def write(corpus: Corpus, folder: Path) -> None:
    """Writes `folder`, for `tfds.builder_from_directory`: one example per segment, one split per fold that has any.

    An example holds frames (n, F) float32 (NaN where a value is not finite), labels (E,) float32, recording, index (the label row), start and end (seconds, float64).
    Examples are shuffled within a split; recording and index identify them. Raises UserError where TensorFlow cannot write.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tensor, scalar = tfds.features.Tensor, tfds.features.Scalar
    spec = {
        "frames": tensor(shape=(None, len(corpus.features)), dtype=np.float32),
        "labels": tensor(shape=(None,), dtype=np.float32),  # empty in train_unlabelled
        "recording": tfds.features.Text(),
        "index": scalar(np.int64),
        "start": scalar(np.float64),
        "end": scalar(np.float64),
    }
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch,
            contextlib.redirect_stdout(io.StringIO()),  # TFDS speaks of downloads
        ):
            builder = tfds.dataset_builders.store_as_tfds_dataset(
                name=_dataset_name(corpus.name),
                version=VERSION,
                features=tfds.features.FeaturesDict(spec),
                split_datasets={name: _examples(fold) for name, fold in corpus.folds.items() if len(fold)},
                description=f"Segments of {corpus.name}; columns of labels: {', '.join(corpus.emotions)}.",
                data_dir=scratch,
            )
            os.rename(builder.data_dir, folder)
    except tf.errors.OpError as error:
        reason = " ".join(str(error.message).split())
        raise UserError(f"{folder} cannot be written ({reason}): free some space or give another folder.") from error


def _dataset_name(corpus: str) -> str:
    """TFDS takes lower-case identifiers that begin with a letter."""
    name = re.sub(r"[^a-z0-9]+", "_", corpus.lower()).strip("_")
    return name if name[:1].isalpha() else f"corpus_{name}".rstrip("_")


def _examples(fold: Fold) -> Iterator[tuple[str, dict]]:
    frames = np.split(fold.frames, fold.offsets[1:-1])
    for x, labels, recording, index, (start, end) in zip(frames, fold.labels, fold.recordings, fold.indices, fold.intervals, strict=True):
        example = {"frames": x, "labels": labels, "recording": recording, "index": index, "start": start, "end": end}
        yield f"{recording}[{index}]", example
