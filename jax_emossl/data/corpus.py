"""From feature and label `.csd` files and folds to a prepared corpus, one recording at a time.

Every frame, segment and label passes through here once: aligned (`align.py`), cleaned, counted in an
account of what was dropped, repaired or clipped, and written to the form that `prepared.py` reads.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import importlib.util
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from jax_emossl.data import align, csd, prepared, tfds
from jax_emossl.data.statistics import Statistics, voiced_frames
from jax_emossl.errors import UserError

# CMU-MOSEI's conventions, for files that do not name their columns.
MOSEI_COLUMNS = ("sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear")
COVAREP_DIMENSIONS = (
    *("F0", "VUV", "NAQ", "QOQ", "H1H2", "PSP", "MDQ", "peakSlope", "Rd", "Rd_conf", "creak"),
    *(f"MCEP_{i}" for i in range(25)),
    *(f"HMPDM_{i}" for i in range(25)),
    *(f"HMPDD_{i}" for i in range(13)),
)
MAX_INTENSITY = 3.0
UNLABELLED_SECONDS = 10.0  # longest chunk cut from a stretch without labels
SHORTEST_UNLABELLED_SECONDS = 1.0
_EXAMPLES = 5


class Account:
    """Counts what was dropped, repaired or clipped, per reason, with the first few ids."""

    def __init__(self):
        self._count: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        if count:
            self._count[reason] += int(count)
            examples = self._examples.setdefault(reason, [])
            if len(examples) < _EXAMPLES:
                examples.append(example)

    def rows(self) -> list[dict]:
        return [{"reason": reason, "count": count, "examples": self._examples[reason]} for reason, count in sorted(self._count.items())]


def read_folds(folds: str | Path) -> dict[str, list[str]]:
    """Recording ids per fold, from a JSON file or, for 'cmu_mosei', from the installed CMU SDK.

    Raises:
      UserError: the file is not of the form {"train": [id, ...], "valid": [...], "test": [...]}, or an id is in two folds.
    """
    if str(folds) == "cmu_mosei":
        table = _standard_mosei_folds()
    else:
        try:
            table = json.loads(Path(folds).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{folds} cannot be read as a JSON file of folds ({' '.join(str(error).split())}).") from error
    if not isinstance(table, dict) or set(table) != set(prepared.FOLDS):
        raise UserError(f"{folds} must hold exactly the folds train, valid and test, each a list of recording ids.")
    owner: dict[str, str] = {}
    for fold in prepared.FOLDS:
        if not isinstance(table[fold], list) or not all(isinstance(id_, str) for id_ in table[fold]):
            raise UserError(f"{folds}, fold '{fold}', must be a list of recording ids (text).")
        for recording in table[fold]:
            if owner.setdefault(recording, fold) != fold:
                raise UserError(f"{folds} has recording {recording!r} in two folds, {owner[recording]} and {fold}: keep it in one.")
    return {fold: sorted(set(table[fold])) for fold in prepared.FOLDS}


def _standard_mosei_folds() -> dict[str, list[str]]:
    """The folds in the SDK's source, parsed rather than imported: importing the SDK needs PyTorch."""
    package = importlib.util.find_spec("mmsdk")
    source = "mmdatasdk/dataset/standard_datasets/CMU_MOSEI/cmu_mosei_std_folds.py"
    source = package and Path(package.submodule_search_locations[0]) / source
    if not (source and source.is_file()):
        raise UserError("The standard CMU-MOSEI folds come with the CMU SDK: pip install cmu-multimodal-sdk, or give --folds a JSON file.")
    assigned = {
        node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source.read_text()).body if isinstance(node, ast.Assign)
    }
    return {fold: assigned[f"standard_{fold}_fold"] for fold in prepared.FOLDS}


def prepare(
    features: str | Path,
    labels: str | Path,
    folds: str | Path,
    out: str | Path,
    *,
    words: str | Path = "",
    label_names: Sequence[str] = (),
    unlabelled: bool = False,
    overwrite: bool = False,
    name: str = "",
    as_tfds: bool = False,
) -> dict:
    """Aligns, cleans and writes a corpus in the form of `prepared.py`; returns its summary.

    Args:
      features: `.csd` of frames (or of any embedding per interval).
      labels: `.csd` of labelled segments; a segment's index is its row.
      folds: JSON file of recording ids per fold, or 'cmu_mosei'.
      out: folder to create; it appears whole or not at all.
      words: `.csd` of word intervals: frames are averaged over each word first.
      label_names: names of the label columns, where the file has none.
      unlabelled: also keep the training recordings' frames outside any labelled segment.
      overwrite: replace `out` if it holds a prepared corpus.
      name: name of the corpus in results; the file's stem without it.
      as_tfds: also write the segments as a TFDS dataset (see `tfds.py`).

    A corpus whose features carry the metadata "synthetic": true is marked so in everything made on it.

    Raises:
      UserError: an input is damaged or contradictory, or the disk is full; `out` is as it was before.
    """
    out = Path(out)
    _check_out(out, overwrite)
    if as_tfds:
        tfds.require()
    for path in (features, labels, folds, *([words] if words else [])):
        if str(path) != "cmu_mosei" and not Path(path).is_file():
            raise UserError(f"{path} does not exist or is not a file: correct the path.")
    members = read_folds(folds)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be created: {error.strerror}.") from error
    try:
        with contextlib.ExitStack() as files:
            sequences = [files.enter_context(csd.Sequence(path)) if path else None for path in (features, labels, words)]
            builder = _Builder(*sequences, tuple(label_names), unlabelled)
            summary = builder.build(members, scratch, name or Path(features).stem)
        if as_tfds:
            tfds.write(prepared.load(scratch), scratch / "tfds")
        _put_in_place(scratch, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}; free some space or give another folder.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return summary


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuses to write over anything but, on request, a prepared corpus or an empty folder."""
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UserError(f"{out} exists: give --overwrite to replace it, or another --out.")
    if not prepared.is_prepared(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is no prepared corpus, so --overwrite does not replace it: give another --out.")


def _put_in_place(scratch: Path, out: Path) -> None:
    """Renames the finished folder to `out`; what was there is gone only once that has worked."""
    scratch.chmod(0o777 & ~_umask())
    if not out.exists():
        os.rename(scratch, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent)) / out.name
    os.rename(out, old)
    try:
        os.rename(scratch, out)
    except BaseException:
        os.rename(old, out)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Builder:
    """One pass over the recordings of the folds."""

    def __init__(
        self,
        features: csd.Sequence,
        labels: csd.Sequence,
        words: csd.Sequence | None,
        label_names: tuple[str, ...],
        unlabelled: bool,
    ):
        self.features, self.labels, self.words, self.unlabelled = features, labels, words, unlabelled
        self.account = Account()
        for other in (labels, words):
            if other and not set(features.ids) & set(other.ids):
                raise UserError(f"{features.path} and {other.path} have no recording id in common: check that they belong to one corpus.")
        self.columns, self.emotions = self._label_columns(label_names)
        self.usable, self.dimension = self._usable_recordings()
        self.feature_names = self._feature_names()
        self.hop: float | None = None

    def _label_columns(self, label_names: tuple[str, ...]) -> tuple[list[int], list[str]]:
        """Columns of the labels that are emotions, and their names."""
        width = self.labels.shape(self.labels.ids[0])[1]
        names = self.labels.metadata.get("dimension names")
        if label_names:
            names = list(label_names)
        elif not _is_names(names, width):
            if width != len(MOSEI_COLUMNS):
                raise UserError(
                    f"{self.labels.path} does not name its {width} label columns: give --label-names "
                    f"(data.label_names in a config), a comma-separated list of {width} names."
                )
            names = list(MOSEI_COLUMNS)
        if len(names) != width or len(set(names)) != width:
            raise UserError(f"{self.labels.path} has {width} label columns, so {width} different names are needed, not {', '.join(names)}.")
        self.label_width = width
        columns = [i for i, name in enumerate(names) if name != "sentiment"]
        if not columns:
            raise UserError(f"{self.labels.path} holds no emotion column: give labels with at least one.")
        return columns, [names[i] for i in columns]

    def _usable_recordings(self) -> tuple[set[str], int]:
        """Recordings whose feature dimension is the majority's, and that dimension."""
        shapes = {recording: self.features.shape(recording) for recording in self.features.ids}
        dimension, _ = Counter(d for _, d in shapes.values()).most_common(1)[0]
        if dimension == 0:
            raise UserError(f"{self.features.path} has features of 0 dimensions: there is nothing to learn from.")
        usable = set()
        for recording, (length, d) in shapes.items():
            if d != dimension:
                self.account.add(f"recordings dropped: feature dimension is not {dimension}", f"{recording} ({d})")
            elif length == 0:
                self.account.add("recordings dropped: no frames", recording)
            elif self.words and recording not in self.words:
                self.account.add("recordings dropped: no words", recording)
            else:
                usable.add(recording)
        return usable, dimension

    def _feature_names(self) -> list[str]:
        names = self.features.metadata.get("dimension names")
        if _is_names(names, self.dimension) and len(set(names)) == self.dimension:
            return list(names)
        if self.dimension == len(COVAREP_DIMENSIONS) and "covarep" in self.features.root.lower():
            return list(COVAREP_DIMENSIONS)
        return [f"dimension_{i}" for i in range(self.dimension)]

    def build(self, members: dict[str, list[str]], out: Path, name: str) -> dict:
        statistics: dict[str, Statistics] = {}
        folds: dict[str, dict] = {}
        total = sum(len(ids) for ids in members.values())
        with tqdm(total=total, desc="preparing", unit="recording", leave=False, disable=None) as progress:
            for fold, ids in members.items():
                with contextlib.ExitStack() as files:
                    segments = files.enter_context(_FoldWriter(out / fold, self.dimension, len(self.emotions)))
                    unlabelled = None
                    if self.unlabelled and fold == "train":
                        unlabelled = files.enter_context(_FoldWriter(out / prepared.UNLABELLED, self.dimension, 0))
                    for recording in ids:
                        self._add(recording, segments, unlabelled, statistics)
                        progress.update()
                for writer in filter(None, (segments, unlabelled)):
                    folds[writer.folder.name] = writer.summary()
        for fold in prepared.FOLDS:
            if not folds[fold]["segments"]:
                raise UserError(
                    f"{self.labels.path} has no labelled segment with frames in fold '{fold}': check the ids in the folds file."
                )
        train = [statistics[recording] for recording in members["train"] if recording in statistics]
        summary = {"folds": folds, "outside": self._outside(members), "account": self.account.rows()}
        corpus = {
            "format": prepared.FORMAT,
            "name": name,
            "synthetic": self.features.metadata.get("synthetic") is True,
            "features": self.feature_names,
            "emotions": self.emotions,
            "hop": self.hop,
            "statistics": {
                "train": Statistics.pooled(train).to_json(),
                "recordings": {recording: s.to_json() for recording, s in statistics.items()},
            },
            "train_recordings": [recording for recording in members["train"] if recording in statistics],
            "summary": summary,
        }
        (out / "corpus.json").write_text(json.dumps(corpus, indent=1, allow_nan=False), encoding="utf-8")
        return summary

    def _add(self, recording: str, segments: _FoldWriter, unlabelled: _FoldWriter | None, statistics: dict[str, Statistics]) -> None:
        """Writes a recording's segments and, where wanted, its stretches outside them; notes its statistics."""
        number = self.labels.shape(recording)[0] if recording in self.labels else 0
        if not number:
            self.account.add("fold recordings without labelled segments", recording)
        if recording not in self.usable:
            if recording not in self.features and number:
                self.account.add("labelled recordings dropped: no features", recording)
            self.account.add("segments dropped: recording without usable features", recording, number)
            return
        if not number and not unlabelled:
            return
        labels, spans = self._read_labels(recording) if number else (np.zeros((0, 0)), np.zeros((0, 2)))
        frames, intervals, statistics[recording] = self._read_frames(recording)
        inside = align.overlapping(intervals, spans)
        for index, positions in enumerate(inside):
            if len(positions):
                segments.add(recording, index, spans[index], align.take(frames, positions), labels[index])
            else:
                self.account.add("segments dropped: no frames", f"{recording}[{index}]")
        if unlabelled:
            for index, positions in enumerate(_chunks(intervals, align.outside(intervals, inside))):
                span = (intervals[positions[0], 0], intervals[positions[-1], 1])
                unlabelled.add(recording, index, span, align.take(frames, positions), np.zeros(0))

    def _read_labels(self, recording: str) -> tuple[Float[np.ndarray, "s e"], Float[np.ndarray, "s 2"]]:
        """Intensities of the emotions, clipped to what a listener can give, and the segments' seconds."""
        labels, spans = self.labels.read(recording)
        if labels.shape[1] != self.label_width:
            raise UserError(
                f"{self.labels.path}, entry '{recording}', has {labels.shape[1]} label columns "
                f"where entry '{self.labels.ids[0]}' has {self.label_width}: make them agree."
            )
        labels = labels[:, self.columns]
        bad = np.flatnonzero(~np.isfinite(labels).all(1))
        if len(bad):
            raise UserError(
                f"{self.labels.path}, entry '{recording}', row {bad[0]}, has an intensity that is not a number: correct or remove it."
            )
        clipped = np.clip(labels, 0, MAX_INTENSITY)
        self.account.add(f"intensities clipped to [0, {MAX_INTENSITY:g}]", recording, np.sum(clipped != labels))
        return clipped, spans

    def _read_frames(self, recording: str) -> tuple[Float[np.ndarray, "n f"], Float[np.ndarray, "n 2"], Statistics]:
        """Cleaned frames (or word averages) in time order, their intervals, and their statistics."""
        frames, intervals = self.features.read(recording)
        frames, intervals, moved = align.sort_by_start(frames, intervals)
        self.account.add("recordings whose frames were sorted by start", recording, moved)
        if self.hop is None and self.words is None and len(intervals) > 1:
            self.hop = round(float(np.median(np.diff(intervals[:, 0]))), 6) or None
        statistics = Statistics.of(frames, intervals, voiced_frames(frames, self.feature_names))
        broken = ~np.isfinite(frames)
        if broken.any():
            self.account.add("non-finite values replaced by the recording's mean", recording, broken.sum())
            rows, columns = np.nonzero(broken)
            frames[rows, columns] = np.nan_to_num(statistics.mean).astype(np.float32)[columns]
        if self.words is None:
            return frames, intervals, statistics
        frames, intervals = align.average(frames, intervals, self.words.intervals(recording))
        # A dimension without any value of its own must not count as constantly 0.
        counts = np.broadcast_to(np.isfinite(statistics.mean), frames.shape)
        return frames, intervals, Statistics.of(frames, intervals, counts)

    def _outside(self, members: dict[str, list[str]]) -> dict:
        """Labelled recordings that no fold names, and their segments."""
        inside = {recording for ids in members.values() for recording in ids}
        outside = [recording for recording in self.labels.ids if recording not in inside]
        segments = sum(self.labels.shape(recording)[0] for recording in outside)
        return {"recordings": len(outside), "segments": segments, "examples": outside[:_EXAMPLES]}


def _is_names(names: object, width: int) -> bool:
    return isinstance(names, list) and len(names) == width and all(isinstance(n, str) and n.isprintable() for n in names)


def _chunks(intervals: Float[np.ndarray, "n 2"], free: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts free frames into runs without gaps, and those into chunks of at most `UNLABELLED_SECONDS`."""
    if len(free) == 0:
        return
    starts, ends = intervals[free, 0], intervals[free, 1]
    gap = (np.diff(free) > 1) | (starts[1:] - ends[:-1] > SHORTEST_UNLABELLED_SECONDS)
    for run in np.split(free, np.flatnonzero(gap) + 1):
        chunk = ((intervals[run, 0] - intervals[run[0], 0]) // UNLABELLED_SECONDS).astype(int)
        for positions in np.split(run, np.flatnonzero(np.diff(chunk)) + 1):
            if intervals[positions[-1], 1] - intervals[positions[0], 0] >= SHORTEST_UNLABELLED_SECONDS:
                yield positions


class _FoldWriter:
    """Appends segments to a fold's files; frames are streamed, so memory holds one recording."""

    def __init__(self, folder: Path, dimension: int, emotions: int):
        self.folder, self._dimension, self._emotions = folder, dimension, emotions
        self._offsets, self._labels, self._rows, self._seconds = [0], [], [], 0.0
        folder.mkdir()
        self._file = open(folder / "frames.npy", "wb")
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header so that the first axis can grow in place.
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._offsets[-1], self._dimension)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, recording: str, index: int, span: Sequence[float], frames: Float[np.ndarray, "n f"], labels) -> None:
        self._file.write(np.ascontiguousarray(frames, "<f4").data)
        self._offsets.append(self._offsets[-1] + len(frames))
        self._labels.append(labels)
        self._rows.append((recording, index, repr(float(span[0])), repr(float(span[1]))))
        self._seconds += float(span[1] - span[0])

    def summary(self) -> dict:
        recordings = {row[0] for row in self._rows}
        hours = round(self._seconds / 3600, 4)
        return {"recordings": len(recordings), "segments": len(self._rows), "frames": self._offsets[-1], "hours": hours}

    def __enter__(self) -> _FoldWriter:
        return self

    def __exit__(self, failed, *_) -> None:
        with self._file:
            if failed is not None:
                return
            self._write_header()
        np.save(self.folder / "offsets.npy", np.array(self._offsets, np.int64))
        np.save(self.folder / "labels.npy", np.array(self._labels, np.float32).reshape(len(self._rows), self._emotions))
        with open(self.folder / "segments.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("recording", "index", "start", "end"), *self._rows])


def describe(summary: dict) -> str:
    """The summary as text for people."""
    lines = ["fold              recordings  segments      frames    hours"]
    for fold, row in summary["folds"].items():
        counts = f"{row['recordings']:>10,}  {row['segments']:>8,}  {row['frames']:>10,}"
        lines.append(f"{fold:<16}  {counts}  {row['hours']:>7.2f}")
    outside = summary["outside"]
    if outside["recordings"]:
        examples = _examples(outside["examples"], outside["recordings"])
        lines.append(f"outside the folds: {outside['segments']:,} segments of {outside['recordings']:,} recordings ({examples})")
    for row in summary["account"]:
        lines.append(f"{row['reason']}: {row['count']:,} ({_examples(row['examples'], row['count'])})")
    return "\n".join(lines)


def _examples(ids: list[str], total: int) -> str:
    return ", ".join([*ids, *(["..."] if total > len(ids) else [])])
