"""From feature and label `.csd` files and folds to a prepared corpus, one recording at a time.

Every frame, segment and label passes through here once: aligned (`align.py`), cleaned, repaired or clipped, counted
(`account.py`), and written in the form of `prepared.py`.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from jax_emossl.data import align, csd, prepared, tfds
from jax_emossl.data.account import EXAMPLES, Account
from jax_emossl.data.folds import CMU_MOSEI, in_several, read_folds, read_speakers
from jax_emossl.data.labels import MAX_INTENSITY
from jax_emossl.data.statistics import Statistics, mark, voiced_frames
from jax_emossl.errors import UserError, notice

# CMU-MOSEI's conventions, for files that do not name their columns.
MOSEI_COLUMNS = ("sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear")
COVAREP_DIMENSIONS = (
    *("F0", "VUV", "NAQ", "QOQ", "H1H2", "PSP", "MDQ", "peakSlope", "Rd", "Rd_conf", "creak"),
    *(f"MCEP_{i}" for i in range(25)),
    *(f"HMPDM_{i}" for i in range(25)),
    *(f"HMPDD_{i}" for i in range(13)),
)
UNLABELLED_SECONDS = 10.0  # longest chunk cut from a stretch without labels
SHORTEST_UNLABELLED_SECONDS = 1.0


def build(
    features: str | Path | Sequence[str | Path],
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
    speakers: str | Path = "",
) -> dict:
    """Aligns, cleans and writes a corpus in the form of `prepared.py`; returns its summary (see `account.describe`).

    The arguments are those of the command `prepare`, whose help says what each does; `folds` may also be 'cmu_mosei'. Of several files
    of `features` the first gives the frames, onto which the values of the others are taken (`align.onto`). Where `speakers` are known,
    statistics are theirs, of all their recordings in a fold. A corpus whose features carry the metadata "synthetic": true is marked so in
    everything made on it. Without `labels` its recordings are cut into
    pieces, to be pretrained on. Raises UserError where an input is damaged or contradictory, or the disk is full; `out` is then as it was
    before.
    """
    if as_tfds:
        tfds.require()
    features = [features] if isinstance(features, str | Path) else list(features)
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(csd.Sequence(path)) for path in features]
        files = [stack.enter_context(csd.Sequence(path)) if path else None for path in (labels, words)]
        members, who = read_folds(folds), read_speakers(speakers) if speakers else {}
        if who and not who.keys() & set().union(*members.values()):
            raise UserError(f"{speakers} names no recording of {folds}: check that they belong to one corpus.")
        everyone = set(who.values())
        for recording in set().union(*members.values()) - who.keys() if who else ():
            if recording in everyone:
                raise UserError(f"{speakers} has a speaker named as the recording {recording!r}, whose own it lacks: add it.")
        if who and (shared := in_several(folds, members, who)):
            are = f"{len(shared)} speakers are" if len(shared) > 1 else "1 speaker is"
            notice(f"{are} in more than one fold of {folds}, {shared[0]} the first, so results on it are not of new speakers alone.")
        unit = prepared.SPEAKER if who else prepared.VIDEO if str(folds) == CMU_MOSEI else prepared.RECORDING
        folder = stack.enter_context(prepared.new_folder(Path(out), overwrite))
        builder = _Builder(sources, *files, list(label_names))
        summary = builder.build(members, folder, name or Path(features[0]).stem, unlabelled, who, unit)
        if as_tfds:
            tfds.write(prepared.load(folder), folder / "tfds")
    return summary


class _Source(NamedTuple):
    """A file of features, the name by which it is told from others, and the dimension that most of its recordings have."""

    name: str
    file: csd.Sequence
    dimension: int


class _Builder:
    """One pass over the recordings of the folds."""

    def __init__(self, features: list[csd.Sequence], labels: csd.Sequence | None, words: csd.Sequence | None, label_names: list[str]):
        self.features, self.labels, self.words = features[0], labels, words
        self.account, self.statistics = Account(), {}
        self.hops: dict[str, float] = {}
        for one, other in itertools.combinations(features, 2):
            if one.path.samefile(other.path):
                raise UserError(f"{other.path} is given twice as features: name each file once.")
        for other in filter(None, (*features[1:], labels, words)):
            if not set(self.features.ids) & set(other.ids):
                raise UserError(
                    f"{self.features.path} and {other.path} have no recording id in common: check that they belong to one corpus."
                )
        self.label_names = self._label_names(label_names) if labels else []
        self.columns = [i for i, name in enumerate(self.label_names) if name != "sentiment"]
        if labels and not self.columns:
            raise UserError(f"{labels.path} holds no emotion column: give labels with at least one.")
        self.usable, dimension = self._usable_recordings()
        dimensions = [dimension, *(_majority(_shapes(file), file) for file in features[1:])]
        names: list[str] = []
        for root in (file.root for file in features):
            names.append(
                next(name for name in itertools.chain([root], (f"{root}_{i}" for i in range(2, len(features) + 2))) if name not in names)
            )
        self.sources = [_Source(*own) for own in zip(names, features, dimensions, strict=True)]
        self.feature_names: list[str] = []
        for source in self.sources:
            for name in _feature_names(source.file, source.dimension):
                while name in self.feature_names:
                    name = f"{source.name}.{name}"
                self.feature_names.append(name)

    def _label_names(self, given: list[str]) -> list[str]:
        """Names of all columns of the labels."""
        path, (_, width) = self.labels.path, self.labels.shape(self.labels.ids[0])
        names = given or column_names(self.labels, width)
        if names is None and width == len(MOSEI_COLUMNS):
            names = list(MOSEI_COLUMNS)
            self.account.add("label columns without names, taken for CMU-MOSEI's", ", ".join(names))
        if names is None:
            raise UserError(
                f"{path} does not name its {width} label columns: give --label-names "
                f"(data.label_names in a config), a comma-separated list of {width} names."
            )
        if len(names) != width or len(set(names)) != width:
            raise UserError(f"{path} has {width} label columns, so {width} different names are needed, not {', '.join(names)}.")
        return names

    def _usable_recordings(self) -> tuple[set[str], int]:
        """Recordings whose feature dimension is the majority's, and that dimension."""
        shapes = _shapes(self.features)
        dimension, usable = _majority(shapes, self.features), set()
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

    def build(self, members: dict[str, list[str]], out: Path, name: str, unlabelled: bool, speakers: dict[str, str], unit: str) -> dict:
        """Writes the folds and their description; returns the summary."""
        widths = {fold: len(self.columns) for fold in members}
        if unlabelled and self.labels:
            widths = {"train": widths["train"], prepared.UNLABELLED: 0, **widths}
        places = [(fold, recording) for fold, ids in members.items() for recording in ids]
        with contextlib.ExitStack() as files:
            writers = {
                fold: files.enter_context(prepared.fold_writer(out / fold, len(self.feature_names), n)) for fold, n in widths.items()
            }
            for fold, recording in tqdm(places, desc="preparing", unit="recording", leave=False, disable=None):
                self._add(recording, writers[fold], writers.get(prepared.UNLABELLED) if fold == "train" else None)
        for fold, ids in members.items():
            if not writers[fold].rows and (ids or fold != "test"):
                what = "labelled segment with frames" if self.labels else "recording of a second or more"
                raise UserError(f"{(self.labels or self.features).path} has no {what} in fold '{fold}': check the ids in the folds file.")
        folds = {fold: writer.summary() for fold, writer in writers.items()}
        train = [recording for recording in members["train"] if recording in self.statistics]
        train_statistics = Statistics.pooled([self.statistics[recording] for recording in train])
        told = self._told(members, speakers) if speakers else {}
        corpus = prepared.Corpus(
            path=out,
            name=name,
            synthetic=any(source.file.metadata.get("synthetic") is True for source in self.sources),
            features=tuple(self.feature_names),
            emotions=tuple(self.label_names[i] for i in self.columns),
            hop=self._hop(),
            train_statistics=train_statistics,
            statistics=self.statistics,
            train_recordings=tuple(train),
            folds={},
            summary={"folds": folds, "outside": self._outside(members), "account": self.account.rows(), **told},
            extractor=self._extractor(),
            sources={source.name: source.dimension for source in self.sources} if len(self.sources) > 1 else {},
            speakers={recording: speakers[recording] for recording in self.statistics if recording in speakers},
            unit=unit,
        )
        prepared.write_description(corpus)
        return dict(corpus.summary)

    def _hop(self) -> float | None:
        """The hop that most recordings have, None of words; notes those of another."""
        known = {recording: hop for recording, hop in self.hops.items() if hop}
        if not known:
            return None
        usual, _ = Counter(known.values()).most_common(1)[0]
        for recording, hop in known.items():
            if not align.is_hop(hop, usual):
                self.account.add(f"recordings whose frames are not {usual:g} s apart, read as if they were", f"{recording} ({hop:g} s)")
        return usual

    def _told(self, members: dict[str, list[str]], speakers: dict[str, str]) -> dict:
        """Gives every recording the statistics of all that its speaker says in that fold; returns the numbers of speakers, for the summary."""
        numbers = {}
        for fold, ids in members.items():
            own: dict[str, list[str]] = {}
            for recording in (recording for recording in ids if recording in self.statistics):
                if recording not in speakers:
                    self.account.add("recordings without a speaker, which count for themselves", recording)
                own.setdefault(speakers.get(recording, recording), []).append(recording)
            for several in (recordings for recordings in own.values() if len(recordings) > 1):
                pooled = Statistics.pooled([self.statistics[recording] for recording in several])
                self.statistics.update(dict.fromkeys(several, pooled))
            numbers[fold] = len(own)
        return {"speakers": numbers}

    def _add(self, recording: str, segments: prepared.FoldWriter, rest: prepared.FoldWriter | None) -> None:
        """Writes a recording's segments and, where wanted, its stretches outside them; notes its statistics."""
        number = self.labels.shape(recording)[0] if self.labels and recording in self.labels else 0
        if self.labels and not number:
            self.account.add("fold recordings without labelled segments", recording)
        if recording not in self.usable:
            if recording not in self.features and (number or not self.labels):
                what = "labelled recordings" if self.labels else "fold recordings"
                self.account.add(f"{what} dropped: no features", recording)
            self.account.add("segments dropped: recording without usable features", recording, number)
            return
        if not self.labels:
            rest = segments  # all of it is a stretch without labels
        if not number and not rest:
            return
        labels, spans = self._read_labels(recording) if number else (np.zeros((0, 0)), np.zeros((0, 2)))
        frames, intervals = self._read_frames(recording)
        inside = align.overlapping(intervals, spans)
        for index, positions in enumerate(inside):
            if len(positions):
                segments.add(recording, index, spans[index], align.take(frames, positions), labels[index])
            else:
                self.account.add("segments dropped: no frames", f"{recording}[{index}]")
        if rest:
            index = 0
            for positions in _chunks(intervals, align.outside(intervals, inside)):
                span = (intervals[positions[0], 0], intervals[positions[-1], 1])
                if span[1] - span[0] >= SHORTEST_UNLABELLED_SECONDS:
                    rest.add(recording, index, span, align.take(frames, positions), np.zeros(0))
                    index += 1
                else:
                    self.account.add(f"stretches without labels left out: shorter than {SHORTEST_UNLABELLED_SECONDS:g} s", recording)

    def _read_labels(self, recording: str) -> tuple[Float[np.ndarray, "s e"], Float[np.ndarray, "s 2"]]:
        """Intensities of the emotions, clipped to what a listener can give, and the segments' seconds."""
        labels, spans = self.labels.read(recording)
        where, width = f"{self.labels.path}, entry '{recording}'", len(self.label_names)
        if labels.shape[1] != width:
            raise UserError(
                f"{where}, has {labels.shape[1]} label columns where entry '{self.labels.ids[0]}' has {width}: make them agree."
            )
        labels = labels[:, self.columns]
        bad = np.flatnonzero(~np.isfinite(labels).all(1))
        if len(bad):
            raise UserError(f"{where}, row {bad[0]}, has an intensity that is not a number: correct or remove it.")
        clipped = np.clip(labels, 0, MAX_INTENSITY)
        self.account.add(f"intensities clipped to [0, {MAX_INTENSITY:g}]", recording, np.sum(clipped != labels))
        return clipped, spans

    def _read_frames(self, recording: str) -> tuple[Float[np.ndarray, "n f"], Float[np.ndarray, "n 2"]]:
        """Frames (or word averages) in time order, NaN where a value is not finite or lacking, and their intervals; notes their statistics."""
        frames, intervals = self.features.read(recording)
        frames, intervals, moved = align.sort_by_start(frames, intervals)
        self.account.add("recordings whose frames were sorted by start", recording, moved)
        if self.words is None and len(intervals) > 1:
            self.hops[recording] = round(align.hop(intervals), 6)
        self.account.add("non-finite values, which count as the mean", recording, mark(frames))
        if len(self.sources) > 1:
            frames = np.concatenate([frames, *(self._read_beside(source, recording, intervals) for source in self.sources[1:])], 1)
        if self.words:
            frames, intervals = align.average(frames, intervals, self.words.intervals(recording))
        self.statistics[recording] = Statistics.of(frames, intervals, voiced_frames(frames, self.feature_names))
        return frames, intervals

    def _read_beside(self, source: _Source, recording: str, frames: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n d"]:
        """A further file's values over the frames of the first, NaN where it has none."""
        width = source.file.shape(recording)[1] if recording in source.file else None
        if width == source.dimension:
            rows, intervals, moved = align.sort_by_start(*source.file.read(recording))
            self.account.add(f"recordings whose rows of {source.name} were sorted by start", recording, moved)
            self.account.add(f"non-finite values of {source.name}, which are left out", recording, mark(rows))
            values = align.onto(frames, rows, intervals)
        else:
            why = "" if width is None else f" ({width} dimensions where others have {source.dimension})"
            self.account.add(f"recordings without {source.name}, which count as the mean there", recording + why)
            values = np.full((len(frames), source.dimension), np.nan, np.float32)
        lacking = np.isnan(values).all(1).sum()
        self.account.add(f"frames without {source.name}, which count as the mean there", recording, lacking)
        return values

    def _extractor(self) -> dict[str, str]:
        if len(self.sources) > 1:  # none makes all of them
            return {}
        try:
            return prepared.texts(self.features.metadata.get("extractor", {}))
        except ValueError:
            return {}

    def _outside(self, members: dict[str, list[str]]) -> dict:
        """Labelled recordings that no fold names, and their segments."""
        inside, file = set().union(*members.values()), self.labels or self.features
        outside = [recording for recording in file.ids if recording not in inside]
        segments = sum(self.labels.shape(recording)[0] for recording in outside) if self.labels else 0
        return {"recordings": len(outside), "segments": segments, "examples": outside[:EXAMPLES]}


def _shapes(file: csd.Sequence) -> dict[str, tuple[int, int]]:
    return {recording: file.shape(recording) for recording in file.ids}


def _majority(shapes: dict[str, tuple[int, int]], file: csd.Sequence) -> int:
    """The dimension that most recordings have; UserError where that is none."""
    if not shapes:
        raise UserError(f"{file.path} has no entries: there is nothing to learn from.")
    dimension, _ = Counter(d for _, d in shapes.values()).most_common(1)[0]
    if dimension == 0:
        raise UserError(f"{file.path} has features of 0 dimensions: there is nothing to learn from.")
    return dimension


def _feature_names(file: csd.Sequence, dimension: int) -> list[str]:
    """Those that the file gives, COVAREP's, or numbers."""
    names = column_names(file, dimension)
    if names and len(set(names)) == dimension:
        return names
    if dimension == len(COVAREP_DIMENSIONS) and "covarep" in file.root.lower():
        return list(COVAREP_DIMENSIONS)
    return [f"dimension_{i}" for i in range(dimension)]


def column_names(file: csd.Sequence, width: int) -> list[str] | None:
    """The names that a file gives to its `width` columns, if it does."""
    names = file.metadata.get("dimension names")
    sound = isinstance(names, list) and len(names) == width and all(isinstance(name, str) and name.isprintable() for name in names)
    return names if sound else None


def _chunks(intervals: Float[np.ndarray, "n 2"], free: Int[np.ndarray, "k"]) -> Iterator[Int[np.ndarray, "c"]]:
    """Cuts free frames into runs without labels or a second of nothing between them, and those into chunks of `UNLABELLED_SECONDS` at most."""
    if len(free) == 0:
        return
    starts, ends = intervals[free, 0], intervals[free, 1]
    gap = (np.diff(free) > 1) | (starts[1:] - ends[:-1] > SHORTEST_UNLABELLED_SECONDS)
    for run in np.split(free, np.flatnonzero(gap) + 1):
        chunk = ((intervals[run, 0] - intervals[run[0], 0]) // UNLABELLED_SECONDS).astype(int)
        yield from np.split(run, np.flatnonzero(np.diff(chunk)) + 1)
