"""A table of labels: which files there are, who speaks in them, and what they carry.

`labels.csv` has a column `file`, and may have `speaker`, `recording` (what is recorded in one go; without it, a speaker's files are
one), `start` and `end` (seconds within the file; without them, the whole file), `fold` (train, valid or test), and either one column
per emotion with intensities in [0, 3], or one column `emotion` with names, of which neutral is none.
"""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jax_emossl.data.folds import FOLDS
from jax_emossl.errors import UserError

COLUMNS = ("file", "speaker", "recording", "start", "end", "fold")
MAX_INTENSITY = 3.0
_OVERHANG = 0.1  # s by which a segment may end after its file, as rounded times do
_NO_EMOTION = ("neutral", "calm", "none", "no emotion")
_DIMENSIONS = ("arousal", "valence", "dominance", "activation", "pleasure", "sentiment", "power", "expectation")
_OTHER_NAMES = {
    **dict.fromkeys(("happiness", "joy", "joyful"), "happy"), **dict.fromkeys(("sadness",), "sad"),
    **dict.fromkeys(("angry", "rage"), "anger"), **dict.fromkeys(("surprised", "surprisal"), "surprise"),
    **dict.fromkeys(("disgusted",), "disgust"), **dict.fromkeys(("fearful", "afraid", "anxiety"), "fear"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Segment:
    """A labelled stretch of a file.

    Attributes:
      row: of the table, counted from 1 without its header.
      start, end: seconds within the file; None = its own.
      intensities: one per emotion, in [0, 3].
    """

    row: int
    start: float | None
    end: float | None
    intensities: tuple[float, ...]

    @property
    def words(self) -> str:
        """From when to when it runs, as the table has it."""
        return f"runs from {self.start or 0:.10g} s to {'its end' if self.end is None else f'{self.end:.10g} s'}"


@dataclasses.dataclass(frozen=True)
class File:
    """What a table says of a file: `recording` it is a part of, `speaker` by whom folds are divided, and its segments."""

    name: str
    recording: str
    speaker: str
    fold: str
    segments: tuple[Segment, ...]

    def spans(self, seconds: float, where: object) -> list[tuple[float, float]]:
        """When its segments start and end, in a file of so many seconds; UserError, naming the table, where one lies beyond."""
        for segment in self.segments:
            if (segment.start or 0.0) >= seconds or (segment.end is not None and segment.end > seconds + _OVERHANG):
                raise UserError(f"{where}, row {segment.row}, {segment.words}, but {self.name} ends at {seconds:.10g} s: correct it.")
        return [(segment.start or 0.0, seconds if segment.end is None else segment.end) for segment in self.segments]


@dataclasses.dataclass(frozen=True)
class Table:
    """Files and what they carry; no `emotions` where nothing is labelled. `where` it is from, messages say."""

    emotions: tuple[str, ...]
    files: tuple[File, ...]
    knows_speakers: bool
    where: object

    @classmethod
    def unlabelled(cls, names: Sequence[str], where: object) -> "Table":
        """Of files alone: each is a recording of its own."""
        taken: dict[str, str] = {}
        entries = {name: _entry(name, taken, where) for name in names}
        return cls((), tuple(File(name, entry, entry, "", ()) for name, entry in entries.items()), False, where)

    @classmethod
    def of(cls, frame: pd.DataFrame, where: object, columns: Collection[str] = ()) -> "Table":
        """The table in a data frame of texts and numbers, of its columns only those asked for, if any.

        UserError, naming row and column, where it is none.
        """
        header = [str(column).strip() for column in frame]
        asked = [not columns or name.lower() in columns for name in header]
        _check_header([name for name, wanted in zip(header, asked, strict=True) if wanted], where)
        frame = frame.set_axis(header, axis=1)
        if "file" not in frame:
            there = ", ".join(f"'{column}'" for column in frame) or "none"
            raise UserError(f"{where} has no column 'file' (it has {there}): add one with each recording's file; commas part columns.")
        if frame.empty:
            raise UserError(f"{where} has no rows: add one for each file.")
        frame = frame.loc[:, asked]
        emotions, intensities = _intensities(frame, where)
        times = {name: _numbers(frame, name, where) if name in frame else [None] * len(frame) for name in ("start", "end")}
        texts = {name: frame[name].astype(str).str.strip() for name in ("file", "recording", "speaker", "fold") if name in frame}
        files: dict[str, File] = {}
        speaks: dict[str, str] = {}
        rows: dict[tuple, int] = {}
        speakers, recordings = {}, {}
        for i, name in enumerate(texts["file"]):
            start, end = (None if times[edge][i] is None else float(times[edge][i]) for edge in ("start", "end"))
            segment = Segment(i + 1, start, end, tuple(map(float, intensities[i])))
            if (start or 0) < 0 or (end is not None and end <= (start or 0)):
                raise UserError(f"{where}, row {i + 1}, {segment.words}: correct its start or end.")
            own = {column: texts[column].iloc[i] for column in texts}
            speaker = _entry(own.get("speaker") or own.get("recording") or name, speakers, where)
            fold = own.get("fold", "")
            if "fold" in own and fold not in FOLDS:
                raise UserError(f"{where}, row {i + 1}, has the fold '{fold}': write {', '.join(FOLDS)}, or leave the column out.")
            recording = _entry(own.get("recording") or own.get("speaker") or name, recordings, where)
            made = File(name, recording, speaker, fold, ())
            before = files.setdefault(name, made)
            if dataclasses.replace(before, segments=()) != made:
                raise UserError(
                    f"{where}, row {i + 1}, gives {name} another speaker, recording or fold than a row before: make them agree."
                )
            if speaks.setdefault(made.recording, speaker) != speaker:
                raise UserError(
                    f"{where}, row {i + 1}, gives the recording '{made.recording}' to {speaker} where a row before gives it to "
                    f"{speaks[made.recording]}: a recording is one speaker's, so name it otherwise."
                )
            if (first := rows.setdefault((name, start, end), i + 1)) != i + 1:
                raise UserError(f"{where}, rows {first} and {i + 1}, are of the same stretch of {name}: keep one of them.")
            files[name] = dataclasses.replace(before, segments=(*before.segments, segment))
        table = cls(emotions, tuple(files.values()), "speaker" in texts, where)
        table._check_folds(where)
        return table

    @classmethod
    def read(cls, path: Path, columns: Collection[str] = ()) -> "Table":
        """The table in a CSV file; of its columns only those asked for, if any."""
        try:  # all of it as text: 001 is a name, and of two columns of one name pandas would rename one
            header, *rows = pd.read_csv(
                path, header=None, dtype=str, na_filter=False, encoding="utf-8-sig", skipinitialspace=True, compression=None
            ).to_numpy()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error}): give a CSV file of labels.") from error
        except (ValueError, RecursionError) as error:  # pandas' own errors are ValueErrors
            raise UserError(f"{path} is no CSV file that can be read ({' '.join(str(error).split())[:200]}): write it anew.") from error
        return cls.of(pd.DataFrame(rows, columns=header), path, columns)

    def _check_folds(self, where: object) -> None:
        owner: dict[tuple[str, str], str] = {}
        for file in self.files:
            for who in (("speaker", file.speaker), ("recording", file.recording)):  # who may have the same name
                if owner.setdefault(who, file.fold) != file.fold:
                    what, name = who
                    raise UserError(f"{where} has the {what} '{name}' in two folds, {owner[who]} and {file.fold}: keep it in one.")


def _check_header(columns: Sequence[str], where: object) -> None:
    for i, column in enumerate(columns):
        if not column:
            raise UserError(f"{where} has a column without a name: write one, or remove the column.")
        if not column.isprintable():
            raise UserError(f"{where} has the column '{column[:40]}', with a character that does not print: write its name anew.")
        if column in columns[:i]:
            raise UserError(f"{where} has two columns '{column}': remove or rename one.")
        if column != column.lower() and column.lower() in (*COLUMNS, "emotion"):
            raise UserError(f"{where} has the column '{column}': write it '{column.lower()}'.")


def _entry(name: str, taken: dict[str, str], where: object) -> str:
    """A file's, speaker's or recording's name as that of a `.csd` entry, where a slash would make groups and every character is to print.

    UserError where it is none, or another name has already `taken` it.
    """
    entry = "".join(letter if letter.isprintable() and letter != "/" else "_" for letter in name)
    if entry in (".", ".."):
        raise UserError(f"{where} has the name '{name}', which stands for a folder: write another.")
    if (before := taken.setdefault(entry, name)) != name:
        raise UserError(f"{where} has the names '{before}' and '{name}', both of which would become '{entry}': change one.")
    return entry


def _numbers(frame: pd.DataFrame, column: str, where: object) -> np.ndarray:
    numbers = pd.to_numeric(frame[column], errors="coerce")
    bad = np.flatnonzero(~np.isfinite(numbers.to_numpy(float)))
    if len(bad):
        raise UserError(f"{where}, row {bad[0] + 1}, column '{column}', holds '{frame[column].iloc[bad[0]]}' where a number is needed.")
    return numbers.to_numpy(float)


def _intensities(frame: pd.DataFrame, where: object) -> tuple[tuple[str, ...], np.ndarray]:
    """The emotions, and each row's intensities (rows, emotions)."""
    others = [str(column) for column in frame if column not in COLUMNS]
    dimensional = [column for column in others if column.lower() in _DIMENSIONS]
    if dimensional:
        raise UserError(
            f"{where} has the column '{dimensional[0]}', a dimension of affect, not an emotion with an intensity: leave it out."
        )
    if others == ["emotion"]:
        names = [_OTHER_NAMES.get(name, name) for name in frame["emotion"].astype(str).str.strip().str.lower()]
        if "" in names:
            raise UserError(f"{where}, row {names.index('') + 1}, names no emotion: write one, or neutral.")
        if odd := [name for name in names if not name.isprintable()]:
            row = names.index(odd[0]) + 1
            raise UserError(f"{where}, row {row}, names the emotion '{odd[0]}', with a character that does not print: write it anew.")
        emotions = tuple(sorted({name for name in names if name not in _NO_EMOTION}))  # whatever the order of the rows
        if not emotions:
            raise UserError(f"{where} names no emotion but {names[0]}: name some, or leave the column out, for recordings without labels.")
        return emotions, MAX_INTENSITY * np.array([[name == emotion for emotion in emotions] for name in names], float)
    if "emotion" in others:
        raise UserError(f"{where} has the column 'emotion' and others ({', '.join(c for c in others if c != 'emotion')}): keep one form.")
    columns = [_numbers(frame, column, where) for column in others]
    intensities = np.column_stack(columns) if columns else np.zeros((len(frame), 0))
    bad = np.argwhere((intensities < 0) | (intensities > MAX_INTENSITY))
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{where}, row {row + 1}, column '{others[column]}', holds {intensities[row, column]:g}: intensities lie in [0, {MAX_INTENSITY:g}]."
        )
    if columns and not intensities.any():
        raise UserError(f"{where} has no intensity but 0: give some, or leave its emotions out, for recordings without labels.")
    return tuple(others), intensities
