"""The prepared form of a corpus: plain arrays on disk, memory-mapped.

    DIR/<fold>/frames.npy     (N, F) float32   cleaned frames, neither normalised nor pooled
    DIR/<fold>/offsets.npy    (S + 1,) int64   segment s holds frames[offsets[s]:offsets[s + 1]]
    DIR/<fold>/labels.npy     (S, E) float32   intensities in [0, 3]; E = 0 in train_unlabelled
    DIR/<fold>/segments.csv   recording,index,start,end   (seconds; index is the label row)
    DIR/corpus.json           names, hop, normalisation statistics, and the account of the preparation
    DIR/tfds/                 where asked for, the same segments for tfds.builder_from_directory

with the folds train, valid, test and, where asked for, train_unlabelled. With words, a frame is a word's average.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jax_emossl.data.statistics import Statistics
from jax_emossl.errors import UserError

FORMAT = 1
FOLDS = ("train", "valid", "test")
UNLABELLED = "train_unlabelled"


@dataclasses.dataclass(frozen=True)
class Fold:
    """Ragged frames of S segments, with their labels and origin."""

    frames: Float[np.ndarray, "n f"]
    offsets: Int[np.ndarray, "s+1"]
    labels: Float[np.ndarray, "s e"]
    recordings: list[str]
    indices: Int[np.ndarray, "s"]
    intervals: Float[np.ndarray, "s 2"]

    def __len__(self) -> int:
        return len(self.recordings)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A prepared corpus; `statistics` are per recording, `train_statistics` the training fold's."""

    path: Path
    name: str
    synthetic: bool
    features: tuple[str, ...]
    emotions: tuple[str, ...]
    hop: float | None
    train_statistics: Statistics
    statistics: Mapping[str, Statistics]
    train_recordings: tuple[str, ...]
    folds: Mapping[str, Fold]
    summary: Mapping

    @property
    def frame_seconds(self) -> float:
        return self.hop or self.train_statistics.seconds / sum(len(f.frames) for n, f in self.folds.items() if n.startswith("train"))

    def fold(self, name: str) -> Fold:
        if name not in self.folds:
            raise UserError(f"{self.path} has no fold '{name}': choose one of {', '.join(self.folds)}.")
        return self.folds[name]


def is_prepared(path: str | Path) -> bool:
    return (Path(path) / "corpus.json").is_file()


def load(path: str | Path) -> Corpus:
    """Opens a prepared corpus; frames stay on disk until they are read.

    Raises:
      UserError: a file is missing or damaged, or the files contradict one another.
    """
    path = Path(path)
    if not is_prepared(path):
        raise UserError(f"{path} is not a prepared corpus: make one with python -m jax_emossl.prepare.")
    where = path / "corpus.json"
    try:
        table = json.loads(where.read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise UserError(f"{where} has format {str(table['format'])[:20]!r} where {FORMAT} is read: prepare the corpus anew.")
        corpus = Corpus(
            path=path,
            name=_names([table["name"]])[0],
            synthetic=table["synthetic"] is True,
            features=_names(table["features"]),
            emotions=_names(table["emotions"]),
            hop=None if table["hop"] is None else float(table["hop"]),
            train_statistics=Statistics.from_json(table["statistics"]["train"]),
            statistics={str(k): Statistics.from_json(v) for k, v in table["statistics"]["recordings"].items()},
            train_recordings=_names(table["train_recordings"]),
            folds={},
            summary=dict(table["summary"]),
        )
        names = _names(list(table["summary"]["folds"]))
        if corpus.hop is not None and not 0 < corpus.hop < np.inf:
            raise ValueError(f"a hop of {corpus.hop} s")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"{where} is damaged ({type(error).__name__}): prepare the corpus anew.") from error
    if not set(FOLDS) <= set(names) <= {*FOLDS, UNLABELLED}:
        raise UserError(f"{where} names the folds {', '.join(map(repr, names))}: prepare the corpus anew.")
    if any(len(s.mean) != len(corpus.features) for s in (corpus.train_statistics, *corpus.statistics.values())):
        raise UserError(f"{where} has statistics of another dimension than its {len(corpus.features)} features: prepare the corpus anew.")
    emotions = {name: 0 if name == UNLABELLED else len(corpus.emotions) for name in names}
    folds = {name: _load_fold(path / name, corpus, emotions[name]) for name in names}
    return dataclasses.replace(corpus, folds=folds)


def _names(names: list) -> tuple[str, ...]:
    """Raises ValueError on anything but a list of different texts."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ValueError("a list of different names is something else")
    return tuple(names)


def _load_fold(folder: Path, corpus: Corpus, emotions: int) -> Fold:
    arrays = {}
    for name, mode in (("frames", "r"), ("offsets", None), ("labels", None)):
        file = folder / f"{name}.npy"
        try:
            arrays[name] = np.load(file, mmap_mode=mode, allow_pickle=False)
            if not isinstance(arrays[name], np.ndarray):
                raise ValueError("it holds several arrays")
        except Exception as error:  # NumPy reads a header as Python, which may fail in any way
            raise UserError(f"{file} is missing or damaged ({type(error).__name__}): prepare the corpus anew.") from error
    file = folder / "segments.csv"
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = [(r["recording"], int(r["index"]), float(r["start"]), float(r["end"])) for r in csv.DictReader(stream)]
        indices = np.array([r[1] for r in rows], np.int64)
        intervals = np.array([r[2:] for r in rows], np.float64).reshape(len(rows), 2)
    except (OSError, KeyError, TypeError, ValueError, csv.Error, OverflowError) as error:
        raise UserError(f"{file} is missing or damaged ({type(error).__name__}): prepare the corpus anew.") from error
    frames, offsets, labels = arrays["frames"], arrays["offsets"], arrays["labels"]
    unknown = {r[0] for r in rows} - set(corpus.statistics)
    if unknown:
        raise UserError(f"{file} names recording {min(unknown)!r}, of which corpus.json has no statistics: prepare the corpus anew.")
    sound = (
        (frames.dtype, offsets.dtype, labels.dtype) == (np.float32, np.int64, np.float32)
        and frames.ndim == 2
        and frames.shape[1] == len(corpus.features)
        and labels.shape == (len(rows), emotions)
        and offsets.shape == (len(rows) + 1,)
        and offsets[0] == 0
        and offsets[-1] == len(frames)
        and np.all(np.diff(offsets) > 0)
        and bool(np.all((labels >= 0) & (labels <= 3)))
        and bool(np.all(np.isfinite(intervals)) and np.all(intervals[:, 0] <= intervals[:, 1]) and np.all(indices >= 0))
    )
    if not sound:
        raise UserError(f"{folder} holds arrays that contradict one another: prepare the corpus anew.")
    return Fold(frames, offsets, labels, [r[0] for r in rows], indices, intervals)


def last_frames(fold: Fold, length: int) -> Float[np.ndarray, "s t f"]:
    """The last `length` frames of every segment, zeros on the left of shorter ones.

    On a corpus prepared with words and a length of 50, the input of the field's word-level models. Our own need no
    such form: batches are padded on the right and carry the number of frames.
    """
    dense = np.zeros((len(fold), length, fold.frames.shape[1]), np.float32)
    for row, first, end in zip(dense, fold.offsets[:-1], fold.offsets[1:], strict=True):
        kept = min(length, end - first)
        row[length - kept :] = fold.frames[end - kept : end]
    return dense
