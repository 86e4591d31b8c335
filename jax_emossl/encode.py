"""The command that makes a corpus of recordings: audio or arrays and a table of labels in, `.csd` files and folds out.

    DIR/features.csd        frames of every recording, its files one after another with a second and a half of nothing between
    DIR/labels.csd          intensities of every labelled segment (not where nothing is labelled)
    DIR/folds.json          recordings per fold; with --rotations also folds_rotation1.json, ...
    DIR/speakers.json       who speaks in each recording (where the table has a column speaker)
    DIR/segments.csv        recording,index,file,start,end: where each label row comes from (seconds within the file)

Every config takes DIR, as in `--config=configs/quickstart.py:DIR`; `prepare` takes its files, `--features DIR/features.csd` and so on.
"""

import argparse
import concurrent.futures
import csv as text
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from jax_emossl.data import arrays, audio, corpora, csd, datasets, labels
from jax_emossl.data.audio import Extractor
from jax_emossl.data.corpus import SHORTEST_UNLABELLED_SECONDS
from jax_emossl.data.folds import FOLDS
from jax_emossl.errors import UserError, interruptible, notice
from jax_emossl.workdir import write_atomically

SEGMENTS = "segments.csv"
_GAP = 1.5 * SHORTEST_UNLABELLED_SECONDS  # of nothing between the files of a recording, so that no stretch without labels spans two
_SHARE = 0.2  # of the speakers, in the validation and in the test fold
_EXAMPLE = """
examples:
  python -m jax_emossl.encode --audio recordings/ --labels labels.csv --out corpus/
  python -m jax_emossl.encode --dataset emodb --audio EmoDB/wav/ --out emodb/
  python -m jax_emossl.encode --arrays embeddings/ --hop 0.02 --labels labels.csv --out corpus/
  python -m jax_emossl.main --config=configs/quickstart.py:corpus/
"""


class _Source(NamedTuple):
    """Where frames come from, a folder or one file: `read` makes those of a file by name, `metadata` says what they are."""

    path: Path
    names: Sequence[str]
    read: Callable[[str], Float[np.ndarray, "n f"]]
    hop: float
    root: str
    metadata: dict


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jax_emossl.encode",
        description="Describes every recording by frames of features and writes them, with labels and folds, as a corpus.\n"
        "DIR appears whole or not at all; interrupted, the same command goes on where it was.",
        epilog=f"{__doc__}\n{labels.__doc__}\npublic corpora, and where to get them:\n{datasets.places()}\n{_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--audio",
        type=Path,
        metavar="DIR",
        help=f"recordings ({', '.join(audio.SUFFIXES)}), in folders or not; "
        "an MP3 of variable bit rate needs the header with its length (Xing), which encoders write unless told not to",
    )
    source.add_argument(
        "--arrays",
        type=Path,
        metavar="A",
        help="frames you already have: a folder of .npy (frames, dimensions), an .npz, or a .parquet file",
    )
    parser.add_argument("--hop", type=float, default=0.0, metavar="S", help="seconds from one frame to the next, of --arrays")
    parser.add_argument("--features", choices=audio.FEATURE_SETS, default=audio.FEATURE_SETS[0], help="of --audio: openSMILE's descriptors")
    parser.add_argument("--labels", type=Path, metavar="L.csv", help="table of labels (below); without, the corpus can be pretrained on")
    parser.add_argument(
        "--dataset", metavar="NAME", help=f"a public corpus, whose file names are its labels: {', '.join(datasets.names())}"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--seed", type=int, default=0, help="of the folds, which are drawn by speaker where the table has no column fold")
    parser.add_argument(
        "--rotations", type=int, default=1, metavar="K", help="divisions into folds, which together test every speaker once"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="files that are encoded at once (default: %(default)s)"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out files that cannot be encoded, instead of writing nothing")
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """Encodes what the arguments say and prints a summary; UserError where an input is damaged or contradictory."""
    args = _parser().parse_args(argv)
    if os.path.lexists(args.out):
        raise UserError(f"{args.out} exists: remove it, or give another --out.")
    if "+" in str(args.out):
        raise UserError(f"{args.out} has a '+', by which configs join corpora: give another --out.")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed} is negative: give 0 or more.")
    source = _arrays(args) if args.arrays else _audio(args)
    table = _table(args, source)
    files = _in_order(table.files)
    divisions = _divisions(table, args.rotations, args.seed)
    scratch = args.out.with_name(f".{args.out.name}.encoding")
    scratch.mkdir(parents=True, exist_ok=True)
    frames = _encoded(source, files, scratch, max(1, args.jobs), args.skip_bad)
    files = [file for file in files if file.name in frames]
    divisions = [_left(division, files) for division in divisions]
    new = scratch / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    summary = _write(new, source, table, files, frames, divisions)
    os.rename(new, args.out)
    shutil.rmtree(scratch, ignore_errors=True)
    use, config = ("pretrain, train and compare", "quickstart") if table.emotions and divisions[0]["test"] else ("pretrain", "pretrain")
    print(f"{summary}\nCorpus: {args.out}; {use} on it with --config=configs/{config}.py:{args.out}")


def _audio(args: argparse.Namespace) -> _Source:
    if args.dataset and not args.audio.is_dir():
        raise UserError(f"{args.audio} is no folder: get {args.dataset} from {datasets.module(args.dataset).WHERE} and give its folder.")
    found, extractor = audio.files(args.audio), Extractor.installed(args.features)
    described = {"dimension names": extractor.names, "extractor": extractor.to_json()}
    names = [str(path.relative_to(args.audio)) for path in found]
    return _Source(args.audio, names, lambda name: extractor(args.audio / name), audio.HOP, args.features, described)


def _arrays(args: argparse.Namespace) -> _Source:
    if not 0 < args.hop < np.inf:
        raise UserError("Arrays do not say how far their frames lie apart: give --hop, in seconds.")
    if args.dataset:
        raise UserError("--dataset reads the names of audio files: give --audio, or --labels with --arrays.")
    readers = arrays.readers(args.arrays)
    return _Source(args.arrays, list(readers), lambda name: readers[name](), args.hop, args.arrays.absolute().stem, {})


def _table(args: argparse.Namespace, source: _Source) -> labels.Table:
    """The labels, their files those that are there; UserError where a file has none or the other way round."""
    if args.dataset and args.labels:
        raise UserError("--dataset takes its labels from the names of the files: leave --labels out.")
    if args.dataset:
        return datasets.table(args.dataset, source.names, args.audio)
    if not args.labels:
        return labels.Table.unlabelled(source.names, args.audio or args.arrays)
    table, there = labels.Table.read(args.labels), set(source.names)
    if not table.emotions and any((segment.start, segment.end) != (None, None) for file in table.files for segment in file.segments):
        raise UserError(f"{args.labels} has times but no emotions, without which whole files are read: add some, or leave the times out.")
    where = args.audio or args.arrays
    for file in table.files:
        if file.name not in there:
            raise UserError(f"{args.labels}, row {file.segments[0].row}, names {file.name}, which {where} does not hold: correct the row.")
    if rest := sorted(there - {file.name for file in table.files}):
        raise UserError(f"{where} holds {rest[0]}, which {args.labels} does not name: add a row or remove the file.")
    return table


def _in_order(files: Sequence[labels.File]) -> list[labels.File]:
    return sorted(files, key=lambda file: (file.recording, file.name))


def _divisions(table: labels.Table, rotations: int, seed: int) -> list[dict[str, list[str]]]:
    """Recordings per fold, once or for every rotation: those of the table, or drawn by speaker.

    UserError where there are too few speakers.
    """
    speakers = _speakers(table.files)
    if any(file.fold for file in table.files):
        if rotations != 1:
            raise UserError("The table's column fold gives one division into folds: leave --rotations or the column out.")
        fold = {file.recording: file.fold for file in table.files}
        if missing := [name for name in ("train", "valid") if name not in fold.values()]:
            raise UserError(f"The table's column fold names no file of the fold {missing[0]}, which every training needs: add some.")
        return [{name: [recording for recording in speakers if fold[recording] == name] for name in FOLDS}]
    if rotations < 1:
        raise UserError(f"--rotations {rotations} divides nothing: give 1 or more.")
    if rotations > 1 and not table.emotions:
        raise UserError(f"--rotations {rotations} would hold recordings out to be tested, which without labels none is: leave it out.")
    everyone = sorted(set(speakers.values()))
    # Two are left untested by every division, to train and to validate.
    needed = {1: 3 if table.emotions else 2, 2: 4}.get(rotations, rotations)
    if len(everyone) < needed:
        what = "speakers (column speaker)" if table.knows_speakers else "recordings"
        alone = ", or leave the columns speaker and recording out, to divide by file" if len(table.files) >= needed else ""
        raise UserError(f"There are {len(everyone)} {what} where {needed} are needed to divide them into folds: add some{alone}.")
    order = [everyone[i] for i in np.random.default_rng(seed).permutation(len(everyone))]
    count = max(1, round(_SHARE * len(order)))
    blocks = [[*block] for block in np.array_split(order, rotations)] if rotations > 1 else [order[:count] if table.emotions else []]
    made, next_one = [], 0
    for block in blocks:
        next_one += len(block)
        tested = set(block)
        rest = [who for who in order[next_one:] + order[:next_one] if who not in tested]
        judges = set(rest[: min(count, len(rest) - 1)])
        of = {who: "test" if who in tested else "valid" if who in judges else "train" for who in order}
        made.append({name: [recording for recording, who in speakers.items() if of[who] == name] for name in FOLDS})
    return made


def _left(division: dict[str, list[str]], files: Sequence[labels.File]) -> dict[str, list[str]]:
    """Of a division the recordings that these files are of; UserError where a fold has lost all of them."""
    there = {file.recording for file in files}
    left = {fold: [recording for recording in own if recording in there] for fold, own in division.items()}
    if lost := [fold for fold, own in division.items() if own and not left[fold]]:
        raise UserError(f"No file of the fold {lost[0]} can be encoded: mend some, or divide the files otherwise (column fold, --seed).")
    return left


def _speakers(files: Sequence[labels.File]) -> dict[str, str]:
    """Who speaks in each recording."""
    return {file.recording: file.speaker for file in _in_order(files)}


def _key(source: _Source, name: str) -> str:
    """Names what is already encoded of a file, so that another extractor, and a file that has changed, start anew."""
    file = source.path / name if source.path.is_dir() else source.path
    try:
        found = file.stat()
        state = [found.st_size, found.st_mtime_ns]
    except OSError:  # whoever reads it says so
        state = []
    parts = [source.root, source.hop, source.metadata, str(file.absolute()), *state, name]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _encoded(source: _Source, files: Sequence[labels.File], kept: Path, jobs: int, skip_bad: bool) -> dict[str, Path]:
    """Where each file's frames are kept; UserError, after all files, where one cannot be encoded and is not to be skipped."""
    places = {file.name: kept / f"{_key(source, file.name)}.npy" for file in files}
    todo, bad = [name for name, place in places.items() if not place.exists()], {}
    with tqdm(total=len(places), initial=len(places) - len(todo), desc="encoding", unit="file", leave=False, disable=None) as bar:
        for name, sentence in _all(source, [(name, places[name]) for name in todo], jobs):
            bar.update()
            if sentence:
                bad[name] = sentence
    for sentence in bad.values():
        notice(f"left out: {sentence}" if skip_bad else sentence)
    if bad and (not skip_bad or len(bad) == len(places)):
        raise UserError(f"{len(bad)} of {len(places)} files cannot be encoded: mend or remove them, or give --skip-bad to leave them out.")
    return {name: place for name, place in places.items() if name not in bad}


def _all(source: _Source, todo: Sequence[tuple[str, Path]], jobs: int) -> Iterator[tuple[str, str]]:
    """Every file's name as it is done, and what was wrong with it, if anything."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:  # openSMILE and soundfile leave Python's lock to others
        try:
            waiting = [pool.submit(_encode, source.read, *own) for own in todo]
            for done in concurrent.futures.as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encode(read: Callable[[str], np.ndarray], name: str, place: Path) -> tuple[str, str]:
    try:
        frames = read(name)
    except UserError as error:
        return name, str(error)
    partial = place.with_suffix(f".{os.getpid()}")
    with open(partial, "wb") as file:
        np.save(file, frames)
    os.replace(partial, place)
    return name, ""


def _write(
    out: Path, source: _Source, table: labels.Table, files: Sequence[labels.File], kept: dict[str, Path], divisions: Sequence[dict]
) -> str:
    """Writes the corpus; returns its summary. UserError where widths differ or a segment lies beyond its file."""
    spans: dict[str, list[tuple[float, float]]] = {}
    rows, intensities = [], {}
    width = np.load(kept[files[0].name], mmap_mode="r").shape[1]
    offset, seconds = {}, 0.0
    for file in files:
        frames = np.load(kept[file.name], mmap_mode="r")
        if frames.shape[1] != width:
            raise UserError(f"{file.name} has {frames.shape[1]} dimensions where {files[0].name} has {width}: encode them alike.")
        first, length = offset.get(file.recording, 0.0), len(frames) * source.hop
        for segment, (start, end) in zip(file.segments, file.spans(length, table.where), strict=True) if table.emotions else ():
            rows.append((file.recording, len(spans.get(file.recording, ())), file.name, start, min(end, length)))
            spans.setdefault(file.recording, []).append((first + start, first + min(end, length)))
            intensities.setdefault(file.recording, []).append(segment.intensities)
        offset[file.recording] = first + length + _GAP
        seconds += length
    described = {"computational sequence description": "encoded by jax_emossl", "dataset name": out.name, **source.metadata}
    csd.write(out / corpora.FEATURES, source.root, _recordings(source, files, kept), described)
    if table.emotions:
        entries = ((r, np.array(intensities[r], np.float32), np.array(spans[r])) for r in sorted(spans))
        csd.write(out / corpora.LABELS, "All Labels", entries, {"dimension names": list(table.emotions)})
    with open(out / SEGMENTS, "w", newline="", encoding="utf-8") as stream:
        writer = text.writer(stream)
        writer.writerow(("recording", "index", "file", "start", "end"))
        writer.writerows(rows)
    write_atomically(out / corpora.FOLDS, json.dumps(divisions[0], indent=1))
    for i, division in enumerate(divisions if len(divisions) > 1 else (), 1):
        write_atomically(out / f"folds_rotation{i}.json", json.dumps(division, indent=1))
    if table.knows_speakers:
        write_atomically(out / corpora.SPEAKERS, json.dumps(_speakers(files), indent=1))
    counts = ", ".join(f"{len(own)} {fold}" for fold, own in divisions[0].items())
    named = f"; labels: {', '.join(table.emotions)}" if table.emotions else "; no labels"
    unit = "file" if len(offset) == len(files) else "recording"
    drawn = f"\nFolds were drawn by {unit}, since there is no column speaker." if not (table.knows_speakers or files[0].fold) else ""
    return f"{len(files)} files, {seconds / 60:.1f} minutes, {width} features every {source.hop:g} s; recordings: {counts}{named}{drawn}"


def _recordings(
    source: _Source, files: Sequence[labels.File], kept: dict[str, Path]
) -> Iterator[tuple[str, Float[np.ndarray, "n f"], Float[np.ndarray, "n 2"]]]:
    """Every recording's frames and their intervals, one recording in memory at a time."""
    for recording, own in itertools.groupby(files, lambda file: file.recording):  # they are in order
        parts, starts, first = [], [], 0.0
        for file in own:
            frames = np.load(kept[file.name])
            parts.append(frames)
            starts.append(first + source.hop * np.arange(len(frames)))
            first += len(frames) * source.hop + _GAP
        start = np.concatenate(starts)
        yield recording, np.concatenate(parts), np.column_stack([start, start + source.hop])


def main() -> None:
    """Command line; exits with 2 and one sentence on a user's mistake, 130 when interrupted."""
    with interruptible("run the same command again to go on."):
        run()


if __name__ == "__main__":
    main()
