"""The prepared form of a corpus, written and read: plain arrays on disk, memory-mapped.

    DIR/<fold>/frames.npy     (N, F) float32   frames, neither normalised nor pooled; NaN where a value is not finite
    DIR/<fold>/offsets.npy    (S + 1,) int64   segment s holds frames[offsets[s]:offsets[s + 1]]
    DIR/<fold>/labels.npy     (S, E) float32   intensities in [0, 3]; E = 0 in train_unlabelled
    DIR/<fold>/segments.csv   recording,index,start,end   (seconds; index is the label row)
    DIR/corpus.json           names, hop, normalisation statistics, and the account of the preparation
    DIR/tfds/                 where asked for, the same segments for tfds.builder_from_directory

with the folds train, valid, test and, where asked for, train_unlabelled. With words, a frame is a word's average.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Int

from jax_emossl.data.folds import FOLDS
from jax_emossl.data.statistics import Statistics
from jax_emossl.errors import UserError

FORMAT = 2
DESCRIPTION = "corpus.json"
UNLABELLED = "train_unlabelled"
RECORDING, VIDEO, SPEAKER = UNITS = ("recording", "video", "speaker")
_EMPTY_BYTES = 128  # of an array without elements, which cannot be mapped: its header alone
_COLUMNS = ("recording", "index", "start", "end")


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
    """A prepared corpus; `statistics` are per recording, `train_statistics` the training fold's, `extractor` made the features.

    Where these are of several files, `sources` names them with the number of features of each, in order. `speakers`, where they are
    known, says who speaks in each recording; statistics are then the speaker's in that fold. `unit` is what counts as one, in words.
    """

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
    extractor: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, int] = dataclasses.field(default_factory=dict)
    speakers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unit: str = RECORDING

    def fold(self, name: str) -> Fold:
        if name not in self.folds:
            raise UserError(f"{self.path} has no fold '{name}': choose one of {', '.join(self.folds)}.")
        return self.folds[name]

    @functools.cached_property
    def recordings(self) -> tuple[str, ...]:
        """All recordings, sorted."""
        return tuple(sorted(self.statistics))

    def units(self, recordings: Sequence[str]) -> list[str]:
        """What counts as one, of each of some recordings: who speaks in it or, where that is not known, the recording itself."""
        return [self.speakers.get(recording, recording) for recording in recordings]

    @functools.cached_property
    def all_units(self) -> tuple[str, ...]:
        """Those of all recordings, sorted: the order to which one that is given as a number refers."""
        return tuple(sorted(set(self.units(self.recordings))))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all that a training reads, except the frames, for which the statistics of their recordings speak."""
        names = self.features, self.emotions, self.hop, self.recordings, self.train_recordings
        content = hashlib.sha256(repr((names, [(name, fold.recordings) for name, fold in self.folds.items()])).encode())
        for own in (self.train_statistics, *map(self.statistics.get, self.recordings)):
            content.update(np.array([*own.mean, *own.variance, own.seconds]).tobytes())
        for fold in self.folds.values():
            for array in (fold.offsets, fold.labels, fold.indices, fold.intervals):
                content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()

    @functools.cached_property
    def frame_seconds(self) -> float:
        """Seconds from one frame to the next: the hop, or without one (words) the training segments' seconds over their frames."""
        train = self.folds["train"]
        return self.hop or float(np.diff(train.intervals).sum() / len(train.frames))


# Writing.


@contextlib.contextmanager
def new_folder(out: Path, overwrite: bool | None = None) -> Iterator[Path]:
    """A folder to fill, which becomes `out` once all is well; until then, and where anything fails, `out` is as it was.

    Raises UserError where `out` cannot be written, or may not be replaced: with `overwrite` only a prepared corpus or an empty folder
    may, else nothing (None: the command has no such flag).
    """
    if os.path.lexists(out):
        if not overwrite:
            mend = "remove it, or give" if overwrite is None else "give --overwrite to replace it, or"
            raise UserError(f"{out} exists: {mend} another --out.")
        if not is_prepared(out) and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is no prepared corpus, so --overwrite does not replace it: give another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"{out} cannot be created: {error.strerror}.") from error
    with scratch:
        new, old = Path(scratch.name, "new"), Path(scratch.name, "old")
        try:
            new.mkdir()
            yield new
            with contextlib.ExitStack() as undo:
                if out.exists():
                    os.rename(out, old)
                    undo.callback(os.rename, old, out)
                os.rename(new, out)
                undo.pop_all()
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error.strerror or error}; free some space or give another folder.") from error


class FoldWriter:
    """Appends segments to a fold's files; frames are streamed, so memory holds one recording."""

    def __init__(self, file: BinaryIO, dimension: int):
        self._file, self._dimension = file, dimension
        self.offsets, self.labels, self.rows, self._seconds = [0], [], [], 0.0

    def write_header(self) -> None:
        # NumPy pads the header so that the first axis can grow in place.
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.offsets[-1], self._dimension)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, recording: str, index: int, span: Sequence[float], frames: Float[np.ndarray, "n f"], labels) -> None:
        self._file.write(np.ascontiguousarray(frames, "<f4").data)
        self.offsets.append(self.offsets[-1] + len(frames))
        self.labels.append(labels)
        self.rows.append((recording, index, repr(float(span[0])), repr(float(span[1]))))
        self._seconds += float(span[1] - span[0])

    def summary(self) -> dict:
        recordings = {row[0] for row in self.rows}
        hours = round(self._seconds / 3600, 4)
        return {"recordings": len(recordings), "segments": len(self.rows), "frames": self.offsets[-1], "hours": hours}


@contextlib.contextmanager
def fold_writer(folder: Path, dimension: int, emotions: int) -> Iterator[FoldWriter]:
    """Makes a fold's folder; its files are complete when the block ends well."""
    folder.mkdir()
    with open(folder / "frames.npy", "wb") as file:
        writer = FoldWriter(file, dimension)
        writer.write_header()
        yield writer
        writer.write_header()
    np.save(folder / "offsets.npy", np.array(writer.offsets, np.int64))
    np.save(folder / "labels.npy", np.array(writer.labels, np.float32).reshape(len(writer.rows), emotions))
    with open(folder / "segments.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_COLUMNS, *writer.rows])


def write_description(corpus: Corpus) -> None:
    """Writes the `corpus.json` that `load` reads: all of a corpus but its folds."""
    table = {
        "format": FORMAT,
        **{field: getattr(corpus, field) for field in ("name", "synthetic", "features", "emotions", "hop")},
        "statistics": {
            "train": corpus.train_statistics.to_json(),
            "recordings": {recording: s.to_json() for recording, s in corpus.statistics.items()},
        },
        "train_recordings": corpus.train_recordings,
        "summary": corpus.summary,
        "extractor": dict(corpus.extractor),
        **({"sources": dict(corpus.sources)} if corpus.sources else {}),
        **({"speakers": dict(corpus.speakers)} if corpus.speakers else {}),
        **({"unit": corpus.unit} if corpus.unit != RECORDING else {}),
    }
    (corpus.path / DESCRIPTION).write_text(json.dumps(table, indent=1, allow_nan=False), encoding="utf-8")


# Reading.


def is_prepared(path: str | Path) -> bool:
    return (Path(path) / DESCRIPTION).is_file()


def load(path: str | Path) -> Corpus:
    """Opens a prepared corpus, frames staying on disk until read; UserError where a file is missing, damaged, or contradicts another."""
    path = Path(path)
    if not is_prepared(path):
        raise UserError(f"{path} is not a prepared corpus: make one with python -m jax_emossl.prepare.")
    corpus = describe(path / DESCRIPTION)
    return dataclasses.replace(corpus, folds={name: _load_fold(corpus, name) for name in corpus.summary["folds"]})


def describe(where: Path) -> Corpus:
    """A corpus without its folds, of which the summary has the names, from its description; UserError as for `load`."""
    with _damage(where):
        table = json.loads(where.read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise UserError(f"{where} has format {str(table['format'])[:20]!r} where {FORMAT} is read: prepare the corpus anew.")
        corpus = Corpus(
            path=where.parent,
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
            extractor=texts(table.get("extractor", {})),
            sources=numbers(table.get("sources", {}), len(table["features"])),
            speakers=texts(table.get("speakers", {})),
            unit=table.get("unit", RECORDING),
        )
        if corpus.unit not in UNITS:
            raise ValueError("recordings are called something else")
        names = _names(list(table["summary"]["folds"]))
        if corpus.hop is not None and not 0 < corpus.hop < np.inf:
            raise ValueError(f"a hop of {corpus.hop} s")
    if not set(FOLDS) <= set(names) <= {*FOLDS, UNLABELLED}:
        raise UserError(f"{where} names the folds {', '.join(map(repr, names))}: prepare the corpus anew.")
    if any(len(s.mean) != len(corpus.features) for s in (corpus.train_statistics, *corpus.statistics.values())):
        raise UserError(f"{where} has statistics of another dimension than its {len(corpus.features)} features: prepare the corpus anew.")
    return corpus


@contextlib.contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Tells of whatever a damaged file makes Python raise; NumPy reads a header as Python, which may fail in any way."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} is missing or damaged ({type(error).__name__}): prepare the corpus anew.") from error


def _names(names: list) -> tuple[str, ...]:
    """Raises ValueError on anything but a list of different texts."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ValueError("a list of different names is something else")
    return tuple(names)


def texts(table: dict) -> dict[str, str]:
    """Raises ValueError on anything but texts by name."""
    if not isinstance(table, dict) or not all(isinstance(text, str) for pair in table.items() for text in pair):
        raise ValueError("texts by name are something else")
    return table


def numbers(table: dict, total: int) -> dict[str, int]:
    """Raises ValueError on anything but nothing, or numbers by name that make a total."""
    if not isinstance(table, dict) or not all(type(number) is int and number > 0 for number in table.values()):
        raise ValueError("numbers by name are something else")
    if table and sum(table.values()) != total:
        raise ValueError("the numbers of features make another total")
    return table


def _array(file: Path, mode: str | None = None) -> np.ndarray:
    with _damage(file):
        array = np.load(file, mmap_mode=mode if file.stat().st_size > _EMPTY_BYTES else None, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it holds several arrays")
        return array


def _load_fold(corpus: Corpus, name: str) -> Fold:
    folder, file = corpus.path / name, corpus.path / name / "segments.csv"
    frames, offsets, labels = _array(folder / "frames.npy", "r"), _array(folder / "offsets.npy"), _array(folder / "labels.npy")
    with _damage(file), open(file, newline="", encoding="utf-8") as stream:
        rows = [[row[column] for column in _COLUMNS] for row in csv.DictReader(stream)]
        recordings = [str(row[0]) for row in rows]
        indices = np.array([int(row[1]) for row in rows], np.int64)
        intervals = np.array([[float(second) for second in row[2:]] for row in rows], np.float64).reshape(len(rows), 2)
    if unknown := set(recordings) - set(corpus.statistics):
        raise UserError(f"{file} names recording {min(unknown)!r}, of which corpus.json has no statistics: prepare the corpus anew.")
    sound = (
        (frames.dtype, offsets.dtype, labels.dtype) == (np.float32, np.int64, np.float32)
        and frames.ndim == 2
        and frames.shape[1] == len(corpus.features)
        and labels.shape == (len(rows), 0 if name == UNLABELLED else len(corpus.emotions))
        and offsets.shape == (len(rows) + 1,)
        and (offsets[0], offsets[-1]) == (0, len(frames))
        and np.all(np.diff(offsets) > 0)
        and np.all((labels >= 0) & (labels <= 3))
        and np.all(np.isfinite(intervals))
        and np.all(intervals[:, 0] < intervals[:, 1])
        and np.all(indices >= 0)
    )
    if not sound:
        raise UserError(f"{folder} holds arrays that contradict one another: prepare the corpus anew.")
    return Fold(frames, offsets, labels, recordings, indices, intervals)


def last_frames(fold: Fold, length: int) -> Float[np.ndarray, "s t f"]:
    """The last `length` frames of every segment, zeros on the left of shorter ones and for values that are not finite.

    On a corpus prepared with words and a length of 50, the input of the field's word-level models. Our own need no
    such form: batches are padded on the right and carry the number of frames.
    """
    dense = np.zeros((len(fold), length, fold.frames.shape[1]), np.float32)
    for row, first, end in zip(dense, fold.offsets[:-1], fold.offsets[1:], strict=True):
        kept = min(length, end - first)
        row[length - kept :] = np.nan_to_num(fold.frames[end - kept : end])
    return dense
