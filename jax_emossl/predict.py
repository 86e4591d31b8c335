"""The command that asks a trained model about recordings: audio, `.csd` or `.npy` in; tables, figures and a page out.

    DIR/predictions.csv, .json   a row per segment: what is said of each emotion
    DIR/over_time.csv, .json     the same of windows that slide over every recording
    DIR/figures/*.png            the emotions of every recording over time
    DIR/index.html               with --html: all of it on one page that needs no network, audio to be played in place

Features are normalised as the model's own were: unless it was trained otherwise, by the recording's own statistics, shrunk toward those of
the training fold by its seconds, and what the head reads by the recording's other stretches, by their number. Other recordings never matter, and
a short one is left almost as it is.
"""

import argparse
import concurrent.futures
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm import tqdm

from jax_emossl import page
from jax_emossl.data import align, arrays, audio, corpus, csd, labels
from jax_emossl.data.audio import Extractor
from jax_emossl.data.prepared import new_folder
from jax_emossl.errors import UserError, interruptible, notice
from jax_emossl.model import Model, Recording, load_model

_SHOWN = 20  # rows on the screen
_TOGETHER = 2**26  # values that windows copy of recordings which are asked about at once
_WINDOWS = 2**20  # of one recording
_MOST = 2**31  # values that they copy of one recording, whose windows are answered together since what the head reads rests on one another
_NAME = 200  # bytes of a figure's name, of which file systems take some 255
_EXAMPLE = """
examples:
  python -m jax_emossl.predict --run runs/finetune interview.wav --out said/ --html
  python -m jax_emossl.predict --run runs/finetune corpus/features.csd --segments corpus/labels.csd --out said/
"""


_Asked = dict[str, Callable[[float], Float[np.ndarray, "s 2"]]]  # by name, the segments of a recording of so many seconds


class Said(NamedTuple):
    """What a model says of one recording.

    Attributes:
      source: the file it is in.
      segments, windows: (S, 2) seconds, and by name what is said of them (S, C).
    """

    name: str
    source: Path
    recording: Recording
    segments: tuple[Float[np.ndarray, "s 2"], dict[str, np.ndarray]]
    windows: tuple[Float[np.ndarray, "w 2"], dict[str, np.ndarray]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jax_emossl.predict",
        description="Asks a trained model what emotions recordings carry, as a whole (or per segment) and over time.",
        epilog=f"{__doc__}{_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="audio files or folders of them, .csd or .npy features")
    parser.add_argument("--run", required=True, type=Path, help="workdir of a fine-tuning, or a folder that jax_emossl.share wrote")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--segments",
        type=Path,
        metavar="T",
        help="what is a segment: a table file,start,end (.csv), or the rows of a .csd; default: each whole recording",
    )
    parser.add_argument("--window", type=float, default=4.0, metavar="S", help="seconds of a sliding window (default: %(default)g)")
    parser.add_argument("--step", type=float, default=1.0, metavar="S", help="seconds from one window to the next (default: %(default)g)")
    parser.add_argument("--html", action="store_true", help="write also index.html, to look at and listen to")
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """Predicts what the arguments say and prints a summary; UserError where an input is damaged or does not fit the model."""
    args = _parser().parse_args(argv)
    if not (0 < args.step < math.inf and 0 < args.window < math.inf):
        raise UserError(f"--window {args.window:g} and --step {args.step:g} must be positive seconds.")
    model = load_model(args.run)
    if not model.card.head:
        raise UserError(f"{args.run} is a pretraining, which says nothing of emotions: give the workdir of a fine-tuning.")
    with new_folder(args.out) as out:
        begun = time.perf_counter()
        sources = list(_recordings(model, args.run, args.inputs, _asked(args.segments)))
        encoded = time.perf_counter()
        said = answers(model, sources, args.window, args.step)
        predicted = time.perf_counter()
        _write(out, model, said, args.html)
    seconds = sum(align.covered_seconds(own.recording.intervals) for own in said)
    print(_shown(model, pd.DataFrame(_rows(model, said, "segments"))))
    print(
        f"{len(said)} recordings, {seconds / 60:.1f} minutes: read in {encoded - begun:.2f} s, predicted in {predicted - encoded:.2f} s; "
        f"features are normalised {model.normalised}.\nPredictions: {args.out}"
    )


def answers(model: Model, sources: Sequence[tuple[str, Path, Recording]], window: float, step: float) -> list[Said]:
    """What the model says of recordings, of their segments and of windows that slide over them (seconds).

    Recordings do not matter to one another: only so many are asked about together that what overlapping windows copy stays small.
    UserError where those of one recording would copy too much.
    """
    copied = [max(1.0, window / step) * np.size(own.frames) for _, _, own in sources]
    for (name, _, own), values in zip(sources, copied, strict=True):
        if np.ptp(_intervals(model, own)) / step > _WINDOWS:
            raise UserError(f"{name} has more than {_WINDOWS} windows, one every {step:g} s: take a larger --step.")
        if values > _MOST:
            raise UserError(f"Windows of {window:g} s every {step:g} s would hold {name} {window / step:.0f} times: take a larger --step.")
    last = np.cumsum(copied) // _TOGETHER
    return [said for i in np.unique(last) for said in _answered(model, [sources[j] for j in np.flatnonzero(last == i)], window, step)]


def _answered(model: Model, sources: Sequence[tuple[str, Path, Recording]], window: float, step: float) -> list[Said]:
    """`answers` for recordings that are asked about together."""
    by_name = []
    for name, source, own in sources:
        own = own._replace(intervals=_intervals(model, own))
        segments = np.array([[own.intervals[0, 0], own.intervals[:, 1].max()]]) if own.spans is None else own.spans
        by_name.append((name, source, own, segments, _windows(own.intervals, window, step)))
    made = [model.predict([own._replace(spans=spans[which]) for _, _, own, *spans in by_name]) for which in (0, 1)]
    said, first = [], [0, 0]
    for name, source, own, *spans in by_name:
        parts = []
        for which in (0, 1):
            stop = first[which] + len(spans[which])
            parts.append((spans[which], {key: values[first[which] : stop] for key, values in made[which].items()}))
            first[which] = stop
        said.append(Said(name, source, own, *parts))
    return said


def _intervals(model: Model, own: Recording) -> Float[np.ndarray, "n 2"]:
    return model.intervals(len(own.frames)) if own.intervals is None else own.intervals


def _windows(intervals: Float[np.ndarray, "n 2"], window: float, step: float) -> Float[np.ndarray, "w 2"]:
    """Windows that hold a frame; one of the whole recording where that is no longer than a window, or none holds one."""
    start, end = intervals[0, 0], intervals[:, 1].max()
    firsts = start + step * np.arange(max(0, math.floor((end - start - window) / step + 1e-9)) + 1)
    if end - firsts[-1] > window + 1e-6:
        firsts = np.append(firsts, end - window)  # so that the last is heard, too
    spans = np.column_stack([firsts, np.minimum(firsts + window, end)])
    middle = intervals.mean(1)
    first, last = np.searchsorted(middle, spans[:, 0], side="right"), np.searchsorted(middle, spans[:, 1])
    return spans[last > first] if np.any(last > first) else np.array([[start, end]])


def _asked(path: Path | None) -> _Asked | None:
    """The segments of each file (of a table) or entry (of a `.csd`), by name; None where none are asked for."""
    if path is None:
        return None
    if path.suffix.lower() == ".csd":
        with csd.Sequence(path) as rows:
            return {entry: lambda _, spans=spans: spans for entry in rows.ids if len(spans := rows.intervals(entry))}
    table = labels.Table.read(path, ("file", "start", "end"))
    for file in table.files:
        if any(segment.start is None or segment.end is None for segment in file.segments):
            raise UserError(f"{path}, row {file.segments[0].row}, has no start and end: add these columns, in seconds.")
    return {file.name: lambda seconds, file=file: np.array(file.spans(seconds, path)) for file in table.files}


def _recordings(model: Model, run: Path, inputs: Sequence[Path], asked: _Asked | None) -> Iterator[tuple[str, Path, Recording]]:
    """Every recording of the inputs: its name, its file, and what is asked of it."""
    files = []
    for given in inputs:
        files += [(str(path.relative_to(given)), path) for path in audio.files(given)] if given.is_dir() else [(given.name, given)]
    heard = any(path.suffix.lower() in audio.SUFFIXES for _, path in files)
    extractor = _extractor(model, run) if heard else None
    there = set()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            texts = [name.encode(errors="replace").decode() for name, _ in files]  # a name may hold what is no text, and tables do not
            waiting = [(path, pool.submit(_read, model, extractor, name, path)) for name, (_, path) in zip(texts, files, strict=True)]
            for path, found in tqdm(waiting, desc="reading", unit="file", leave=False, disable=None):
                for name, recording in found.result():
                    if asked is not None and name not in asked:
                        raise UserError(f"--segments names no segment of {name}: add it, or leave the input out.")
                    if name in there:
                        raise UserError(f"{path} is the second input named {name}: give a folder that holds both, or predict them apart.")
                    there.add(name)
                    end = _intervals(model, recording)[:, 1].max()
                    yield name, path, recording._replace(spans=asked[name](end) if asked is not None else None)
        finally:
            pool.shutdown(cancel_futures=True)
    if left := sorted(set(asked or ()) - there):
        notice(f"--segments names {len(left)} recordings that are not among the inputs, {left[0]} the first.")


def _read(model: Model, extractor: Extractor | None, name: str, path: Path) -> list[tuple[str, Recording]]:
    """The recordings in a file, by name: that of the file, or of a `.csd` file's entries."""
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file: give audio, .csd or .npy files.")
    if path.suffix.lower() == ".csd":
        return list(_entries(model, path))
    if path.suffix.lower() == ".npy":
        return [(name, Recording(str(path), arrays.read(path)))]
    if path.suffix.lower() in audio.SUFFIXES:
        return [(name, Recording(str(path), extractor(path)))]
    raise UserError(f"{path} is neither audio ({', '.join(audio.SUFFIXES)}) nor .csd nor .npy: give one of these.")


def _extractor(model: Model, run: Path) -> Extractor:
    card = model.card
    extractor = Extractor.of(card.extractor, card.frontend.names, run)
    if (version := card.extractor.get("version", extractor.version)) != extractor.version:
        notice(f"the model's features were made by openSMILE {version}; {extractor.version} is installed, which may differ.")
    return extractor


def _entries(model: Model, path: Path) -> Iterator[tuple[str, Recording]]:
    frontend = model.card.frontend
    with csd.Sequence(path) as features:
        names = corpus.column_names(features, len(frontend.names))
        if names and len(set(names)) == len(names):
            frontend.check_features(names, "the model", str(path))
        filled = [entry for entry in features.ids if features.shape(entry)[0]]
        if empty := sorted(set(features.ids) - set(filled)):
            notice(f"{path} has {len(empty)} entries without frames, {empty[0]} the first, which are left out.")
        if not filled:
            raise UserError(f"{path} has no entry with frames: there is nothing to predict.")
        for entry in filled:
            frames, intervals, _ = align.sort_by_start(*features.read(entry))
            hop = align.hop(intervals) if len(intervals) > 1 else frontend.frame_seconds
            if not align.is_hop(hop, frontend.frame_seconds):
                raise UserError(
                    f"{path} has frames every {hop:g} s where the model reads one every {frontend.frame_seconds:g} s: encode it alike."
                )
            yield entry, Recording(f"{path}, entry '{entry}',", frames, None, intervals)


def _rows(model: Model, said: Sequence[Said], which: str) -> list[dict]:
    """One flat row per segment or window."""
    rows = []
    for own in said:
        spans, made = getattr(own, which)
        for i, (start, end) in enumerate(spans):
            row = {"recording": own.name, "start": round(float(start), 6), "end": round(float(end), 6)}
            if "intensity" not in made:
                row["category"] = model.classes[made["present"][i].argmax()]
            for name in ("intensity", "mean", "probability", "present"):
                if name in made:
                    row |= {f"{emotion}_{name}": made[name][i, c].item() for c, emotion in enumerate(model.classes)}
            rows.append(row)
    return rows


def _shown(model: Model, table: pd.DataFrame) -> str:
    """The first rows for a screen: what the curves show, too."""
    what = next(name for name in page.CURVES if f"{model.classes[0]}_{name}" in table)
    renamed = table.rename(columns={f"{emotion}_{what}": emotion for emotion in model.classes})
    columns = [name for name in ("recording", "start", "end", "category", *model.classes) if name in renamed]
    lines = renamed[columns].head(_SHOWN).to_string(index=False, float_format="{:.2f}".format)
    more = f"\n... and {len(table) - _SHOWN} more in predictions.csv" if len(table) > _SHOWN else ""
    return f"{lines}{more}\nUnder each emotion: {page.CURVES[what]}."


def _write(out: Path, model: Model, said: Sequence[Said], html: bool) -> None:
    for name, which in (("predictions", "segments"), ("over_time", "windows")):
        rows = _rows(model, said, which)
        pd.DataFrame(rows).to_csv(out / f"{name}.csv", index=False)
        (out / f"{name}.json").write_text(json.dumps(rows, indent=1, allow_nan=False), encoding="utf-8")
    (out / "figures").mkdir()
    for i, own in enumerate(tqdm(said, desc="drawing", unit="figure", leave=False, disable=None)):
        stem = os.fsencode(Path(own.name).stem)[:_NAME].decode(errors="ignore")
        page.figure(model.classes, own.windows, f"{own.name}, by {model.card.corpus}", out / "figures" / f"{i:04d}_{stem}.png")
    if html:
        (out / "index.html").write_text(page.page(model, said), encoding="utf-8")


def main() -> None:
    """Command line; exits with 2 and one sentence on a user's mistake, 130 when interrupted."""
    with interruptible("nothing was written."):
        run()


if __name__ == "__main__":
    main()
