"""A prepared corpus as a TFDS dataset, for buckets and for TFDS users; and back again (`data.prepared=tfds:DIR`).

Beside TFDS's own files lies the corpus's description. TensorFlow and TensorFlow Datasets are imported when called: nothing else in the
data path needs them.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from jax_emossl.data import prepared
from jax_emossl.data.prepared import Corpus, Fold
from jax_emossl.errors import UserError

VERSION = "1.0.0"
PREFIX = "tfds:"  # of `data.prepared`
DESCRIPTION = "prepared.json"  # what corpus.json is to the arrays
_INFO = "dataset_info.json"  # TFDS's own
# TFDS 4.9.10 imports importlib_resources without depending on it on Python 3.11.
_NEEDED = ("tensorflow", "tensorflow_datasets", "importlib_resources")


def require() -> None:
    """Raises UserError where a package that TFDS needs is missing."""
    for name in (name for name in _NEEDED if importlib.util.find_spec(name) is None):
        raise UserError(f"A TFDS dataset needs the package {name}, which is not installed: pip install -r requirements.txt.")


def write(corpus: Corpus, folder: Path) -> None:
    """Writes `folder`, for `tfds.builder_from_directory`: one example per segment, one split per fold that has any.

    An example holds frames (n, F) float32 (NaN where a value is not finite), labels (E,) float32, recording, index (the label row), start and end (seconds, float64).
    Examples are shuffled within a split; recording and index identify them. Raises UserError where TensorFlow cannot write.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        with (
            tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch,
            contextlib.redirect_stdout(io.StringIO()),  # TFDS speaks of downloads
        ):
            builder = tfds.dataset_builders.store_as_tfds_dataset(
                name=_dataset_name(corpus.name),
                version=VERSION,
                features=_features(corpus),
                split_datasets={name: _examples(fold) for name, fold in corpus.folds.items() if len(fold)},
                description=f"Segments of {corpus.name}; columns of labels: {', '.join(corpus.emotions)}.",
                data_dir=scratch,
            )
            shutil.copy(corpus.path / prepared.DESCRIPTION, Path(builder.data_dir, DESCRIPTION))
            os.rename(builder.data_dir, folder)
    except tf.errors.OpError as error:
        reason = " ".join(str(error.message).split())
        raise UserError(f"{folder} cannot be written ({reason}): free some space or give another folder.") from error


def identity(source: str) -> str:
    """What tells the dataset of `tfds:DIR` from others; UserError where there is none, or none that `write` made."""
    where = epath.Path(source.removeprefix(PREFIX))
    if not (where / _INFO).exists():
        raise UserError(f"data.prepared is {source}, but there is no TFDS dataset: give the folder that prepare --tfds wrote, DIR/tfds.")
    if not (where / DESCRIPTION).exists():
        raise UserError(f"{where} is a TFDS dataset without {DESCRIPTION}: give one that prepare --tfds wrote, with this version.")
    return hashlib.sha256(b"".join((where / name).read_bytes() for name in (_INFO, DESCRIPTION))).hexdigest()


def copy(source: str, out: Path) -> None:
    """Copies the dataset of `tfds:DIR`, a folder or a bucket, into a prepared corpus `out`, its segments in their old order.

    Examples are streamed. Raises UserError where the dataset is damaged, or contradicts its description.
    """
    require()
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
    where = epath.Path(source.removeprefix(PREFIX))
    corpus = prepared.describe(where / DESCRIPTION)
    anew = "write it anew with prepare --tfds"
    try:
        builder = tfds.builder_from_directory(where)
        if _shapes(builder.info.features) != _shapes(_features(corpus)):
            raise UserError(f"{where} holds examples of other shapes than {DESCRIPTION} says: {anew}.")
        with prepared.new_folder(out, overwrite=False) as folder:
            for fold, told in corpus.summary["folds"].items():
                split = builder.as_dataset(split=fold) if fold in builder.info.splits else ()
                examples = tqdm(tfds.as_numpy(split), desc=f"copying {fold}", total=told["segments"], leave=False, disable=None)
                found = _copy_fold(corpus, fold, examples, folder)
                if found != {field: told[field] for field in found}:
                    raise UserError(f"{where} holds {found['segments']} segments of {fold} where {DESCRIPTION} tells of others: {anew}.")
            (folder / prepared.DESCRIPTION).write_bytes((where / DESCRIPTION).read_bytes())
    except UserError:
        raise
    except Exception as error:  # what is damaged makes TFDS fail in any way
        raise UserError(f"{where} is a damaged TFDS dataset ({type(error).__name__}): {anew}.") from error


def _copy_fold(corpus: Corpus, fold: str, examples: Iterable[dict[str, Any]], folder: Path) -> dict[str, int]:
    """Writes a fold in the order of the description's recordings; returns how much it has. Its frames wait on disk until all are there."""
    shape = len(corpus.features), 0 if fold == prepared.UNLABELLED else len(corpus.emotions)
    place = {recording: i for i, recording in enumerate(corpus.statistics)}
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        with prepared.fold_writer(Path(scratch, fold), *shape) as arrived:
            for own in examples:
                arrived.add(own["recording"].decode(), int(own["index"]), (own["start"], own["end"]), own["frames"], own["labels"])
        frames = np.load(Path(scratch, fold, "frames.npy"), mmap_mode="r") if arrived.rows else ()
        with prepared.fold_writer(folder / fold, *shape) as writer:
            for s in sorted(range(len(arrived.rows)), key=lambda s: (place[arrived.rows[s][0]], arrived.rows[s][1])):
                recording, index, start, end = arrived.rows[s]
                writer.add(recording, index, (float(start), float(end)), frames[slice(*arrived.offsets[s : s + 2])], arrived.labels[s])
    return {name: number for name, number in writer.summary().items() if name != "hours"}


def _features(corpus: Corpus):
    """TFDS's features of an example."""
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
    return tfds.features.FeaturesDict(spec)


def _shapes(features) -> dict[str, tuple]:
    return {name: (tuple(own.shape), own.np_dtype) for name, own in features.items()}


def _dataset_name(corpus: str) -> str:
    """TFDS takes lower-case identifiers that begin with a letter."""
    name = re.sub(r"[^a-z0-9]+", "_", corpus.lower()).strip("_")
    return name if name[:1].isalpha() else f"corpus_{name}".rstrip("_")


def _examples(fold: Fold) -> Iterator[tuple[str, dict]]:
    frames = np.split(fold.frames, fold.offsets[1:-1])
    for x, labels, recording, index, (start, end) in zip(frames, fold.labels, fold.recordings, fold.indices, fold.intervals, strict=True):
        example = {"frames": x, "labels": labels, "recording": recording, "index": index, "start": start, "end": end}
        yield f"{recording}[{index}]", example
