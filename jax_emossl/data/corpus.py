"""From feature and label `.csd` files and folds to a prepared corpus, one recording at a time.

Every frame, segment and label passes through here once: aligned (`align.py`), cleaned, counted in an
account of what was dropped, repaired or clipped, and written to the form that `prepared.py` reads.
"""

from __future__ import annotations

import ast
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

from jax_emossl.data import align, csd, prepared
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
        return [
            {"reason": reason, "count": count, "examples": self._examples[reason]}
            for reason, count in sorted(self._count.items())
        ]


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
                raise UserError(f"{folds} has recording '{recording}' in two folds, {owner[recording]} and {fold}: keep it in one.")
    return {fold: sorted(set(table[fold])) for fold in prepared.FOLDS}


def _standard_mosei_folds() -> dict[str, list[str]]:
    """The folds in the SDK's source, parsed rather than imported: importing the SDK needs PyTorch."""
    package = importlib.util.find_spec("mmsdk")
    if package is None:
        raise UserError(
            "The standard CMU-MOSEI folds come with the CMU SDK: pip install cmu-multimodal-sdk, or give --folds a JSON file."
        )
    source = Path(package.submodule_search_locations[0]) / "mmdatasdk/dataset/standard_datasets/CMU_MOSEI/cmu_mosei_std_folds.py"
    assigned = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign)
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

    A corpus whose features carry the metadata "synthetic": true is marked so in everything made on it.

    Raises:
      UserError: an input is damaged or contradictory; nothing is left at `out`.
    """
    out = Path(out)
    if out.exists():
        if not overwrite:
            raise UserError(f"{out} exists: give --overwrite to replace it, or another --out.")
        if not prepared.is_prepared(out) and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is no prepared corpus, so --overwrite does not replace it: give another --out.")
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
        builder = _Builder(Path(features), Path(labels), Path(words) if words else None, tuple(label_names), unlabelled)
        summary = builder.build(members, scratch, name or Path(features).stem)
        _put_in_place(scratch, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}; free some space or give another folder.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return summary


def _put_in_place(scratch: Path, out: Path) -> None:
    scratch.chmod(0o777 & ~_umask())
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
        os.rename(out, old / out.name)
        os.rename(scratch, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(scratch, out)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Builder:
    """One pass over the recordings of the folds."""

    def __init__(self, features: Path, labels: Path, words: Path | None, label_names: tuple[str, ...], unlabelled: bool):
        self.features = csd.Sequence(features)
        self.labels = csd.Sequence(labels)
        self.words = csd.Sequence(words) if words else None
        self.unlabelled = unlabelled
        self.account = Account()
        if not set(self.features.ids) & set(self.labels.ids):
            raise UserError(f"{features} and {labels} have no recording id in common: check that they belong to one corpus.")
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
        columns = [i for i, name in enumerate(names) if name != "sentiment"]
        if not columns:
            raise UserError(f"{self.labels.path} holds no emotion, only sentiment: give labels with at least one emotion.")
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
                with _FoldWriter(out / fold, self.dimension, len(self.emotions)) as segments, _FoldWriter(
                    out / prepared.UNLABELLED, self.dimension, 0, wanted=self.unlabelled and fold == "train"
                ) as unlabelled:
                    for recording in ids:
                        self._add(recording, segments, unlabelled, statistics)
                        progress.update()
                for writer in (segments, unlabelled):
                    if writer.wanted:
                        folds[writer.folder.name] = writer.summary()
        for fold in prepared.FOLDS:
            if not folds[fold]["segments"]:
                raise UserError(f"{self.labels.path} has no labelled segment with frames in fold '{fold}': check the ids in the folds file.")
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

    def _add(self, recording: str, segments: _FoldWriter, unlabelled: _FoldWriter, statistics: dict[str, Statistics]) -> None:
        has_labels = recording in self.labels.ids
        if not has_labels:
            self.account.add("fold recordings without labelled segments", recording)
        if recording not in self.usable:
            if recording not in self.features.ids and has_labels:
                self.account.add("labelled recordings dropped: no features", recording)
            return
        if not has_labels and not unlabelled.wanted:
            return
        labels, spans = self._read_labels(recording) if has_labels else (np.zeros((0, len(self.emotions))), np.zeros((0, 2)))
        frames, intervals, statistics[recording] = self._read_frames(recording)
        inside = align.overlapping(intervals, spans)
        for index, positions in enumerate(inside):
            if len(positions) == 0:
                self.account.add("segments dropped: no frames", f"{recording}[{index}]")
                continue
            segments.add(recording, index, spans[index], frames[positions[0] : positions[-1] + 1][positions - positions[0]], labels[index])
        if unlabelled.wanted:
            for index, positions in enumerate(_chunks(intervals, align.outside(intervals, inside))):
                span = (intervals[positions[0], 0], intervals[positions[-1], 1])
                unlabelled.add(recording, index, span, frames[positions], np.zeros(0))

    def _read_labels(self, recording: str) -> tuple[Float[np.ndarray, "s e"], Float[np.ndarray, "s 2"]]:
        labels, spans = self.labels.read(recording)
        if labels.shape[1] <= max(self.columns):
            raise UserError(f"{self.labels.path}, entry '{recording}', has {labels.shape[1]} label columns where the others have more.")
        labels = labels[:, self.columns]
        bad = np.flatnonzero(~np.isfinite(labels).all(1))
        if len(bad):
            raise UserError(f"{self.labels.path}, entry '{recording}', row {bad[0]}, has an intensity that is not a number: correct or remove it.")
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
            frames = np.where(broken, np.nan_to_num(statistics.mean).astype(np.float32), frames)
        if self.words is None:
            return frames, intervals, statistics
        if recording not in self.words.ids:
            self.account.add("recordings without words", recording)
            return frames[:0], intervals[:0], statistics
        _, word_spans = self.words.read(recording)
        word_spans = word_spans[np.argsort(word_spans[:, 0], kind="stable")]
        frames, kept = align.average(frames, align.overlapping(intervals, word_spans))
        intervals = word_spans[kept]
        return frames, intervals, Statistics.of(frames, intervals)

    def _outside(self, members: dict[str, list[str]]) -> dict:
        """Labelled recordings that no fold names, and their segments."""
        inside = {recording for ids in members.values() for recording in ids}
        outside = [recording for recording in self.labels.ids if recording not in inside]
        segments = sum(self.labels.shape(recording)[0] for recording in outside)
        return {"recordings": len(outside), "segments": segments, "examples": outside[:_EXAMPLES]}


def _is_names(names: object, width: int) -> bool:
    return isinstance(names, list) and len(names) == width and all(isinstance(n, str) for n in names)


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

    def __init__(self, folder: Path, dimension: int, emotions: int, wanted: bool = True):
        self.folder, self.wanted, self._dimension, self._emotions = folder, wanted, dimension, emotions
        self._offsets, self._labels, self._rows, self._seconds = [0], [], [], 0.0
        if wanted:
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
        return {"recordings": len(recordings), "segments": len(self._rows), "frames": self._offsets[-1], "hours": round(self._seconds / 3600, 4)}

    def __enter__(self) -> _FoldWriter:
        return self

    def __exit__(self, failed, *_) -> None:
        if not self.wanted:
            return
        if failed is None:
            self._write_header()
            labels = np.array(self._labels, np.float32).reshape(len(self._rows), self._emotions)
            np.save(self.folder / "offsets.npy", np.array(self._offsets, np.int64))
            np.save(self.folder / "labels.npy", labels)
            with open(self.folder / "segments.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("recording", "index", "start", "end"), *self._rows])
        self._file.close()


def describe(summary: dict) -> str:
    """The summary as text for people."""
    lines = ["fold              recordings  segments      frames    hours"]
    for fold, row in summary["folds"].items():
        lines.append(f"{fold:<16}  {row['recordings']:>10,}  {row['segments']:>8,}  {row['frames']:>10,}  {row['hours']:>7.2f}")
    outside = summary["outside"]
    if outside["recordings"]:
        lines.append(f"outside the folds: {outside['segments']:,} segments of {outside['recordings']:,} recordings ({', '.join(outside['examples'])}, ...)")
    lines += [f"{row['reason']}: {row['count']:,} ({', '.join(row['examples'])}{', ...' if row['count'] > len(row['examples']) else ''})" for row in summary["account"]]
    return "\n".join(lines)
