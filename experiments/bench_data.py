"""How fast the data path is, and how much memory it takes. Three parts, each measurement in a process of its own:

nemo      loading and aligning nEMO, ours beside the CMU Multimodal SDK's, in turns (needs cmu-multimodal-sdk)
mosei     python -m jax_emossl.prepare on a corpus with CMU-MOSEI's real videos, segments and folds, but generated
          values of 74 dimensions at 100 Hz, each video up to its last segment: 68 h (8 GB, and as much for the result)
pipeline  frames per second that the loaders deliver from that corpus, and that the train step consumes

Both corpora are looked for in $EMOSSL_DATA (nemo/ and mosei/segments.csv). All runs on at most 2 cores, so that the
figures compare; --all-cores lifts that. Example:

    python -m experiments.bench_data --out experiments/bench_data.json
    python -m experiments.bench_data --parts mosei --keep prepared/mosei
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jax_emossl.data import align, csd, prepared

PARTS = ("nemo", "mosei", "pipeline")
_RATE = 100  # frames per second
_DIMENSIONS = 74
_ROUNDS = 3
_SMALL_VIDEOS = 30
_TRAIN_STEPS = 10


# Measurements: each runs in a fresh process and returns plain numbers; `seconds` leaves imports out.


def load_and_align(features: str, labels: str) -> dict:
    """Ours: the frames of every labelled segment, as arrays."""
    start = time.perf_counter()
    segments = {}
    with csd.Sequence(features) as frame_file, csd.Sequence(labels) as label_file:
        for recording in frame_file.ids:
            if recording not in label_file:
                continue
            frames, intervals, _ = align.sort_by_start(*frame_file.read(recording))
            for index, positions in enumerate(align.overlapping(intervals, label_file.intervals(recording))):
                if len(positions):
                    segments[f"{recording}[{index}]"] = align.take(frames, positions), align.take(intervals, positions)
    return {"seconds": time.perf_counter() - start, **_count(frames for frames, _ in segments.values())}


def sdk_load_and_align(features: str, labels: str) -> dict:
    """The SDK's `mmdataset` and `align`, with the overlap that its repository has now."""
    sys.modules["mmsdk.mmmodelsdk"] = types.ModuleType("mmsdk.mmmodelsdk")  # needs PyTorch; alignment does not
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from mmsdk import mmdatasdk

        sys.modules["mmsdk.mmdatasdk.dataset.dataset"].epsilon = align.EPSILON
        start = time.perf_counter()
        dataset = mmdatasdk.mmdataset({"features": features, "labels": labels})
        dataset.align("labels")
        seconds = time.perf_counter() - start
    return {"seconds": seconds, **_count(entry["features"] for entry in dataset["features"].data.values())}


def prepare(*arguments: str) -> dict:
    """The command `python -m jax_emossl.prepare`."""
    from jax_emossl import prepare as command

    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        command.run(arguments)
    return {"seconds": time.perf_counter() - start}


def pipeline(config_name: str, folder: str, loader: str, steps: str) -> dict:
    """Frames per second out of one loader, at the batches of one config."""
    from jax_emossl.data.batches import in_memory
    from jax_emossl.data.pipeline import tf_data

    _, segments, sampler, experiment = _experiment(config_name, folder)
    load = {"memory": in_memory, "tf.data": tf_data}[loader]
    batches = load(segments, sampler, 0, 0, int(steps) + 5)
    for _ in range(5):  # TensorFlow starts its threads, the first pages come from disk
        next(batches)
    start = time.perf_counter()
    frames = sum(_frames(batch, experiment) for batch in batches)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "frames_per_second": frames / seconds}


def training(config_name: str, folder: str) -> dict:
    """Frames per second that the train step of one config consumes, compilation left out."""
    import jax
    import jax.numpy as jnp

    from jax_emossl import standards
    from jax_emossl.data.batches import in_memory
    from jax_emossl.loop import train_step
    from jax_emossl.optimizer import Optimizer, Rates

    config, segments, sampler, experiment = _experiment(config_name, folder)
    objective, optimizer, rates = experiment.objective, Optimizer.make(config.train), Rates.make(config.train)
    step_of = jax.jit(train_step, static_argnames=("objective", "optimizer"), donate_argnames=("variables", "opt_state"))
    params, constants = jax.device_put(experiment.params()), {}
    if objective.labelled:  # any standards take the same time
        rows, width = len(standards.reference(segments, segments)), params["head"]["readout"]["kernel"].shape[0]
        overall = {"location": jnp.zeros(width), "scale": jnp.ones(width)}
        constants = {"overall": overall, "vectors": jnp.zeros((rows, width)), "order": jnp.arange(rows)}
    opt_state = optimizer.transformation().init(params)
    variables = {"params": params, "constants": constants}
    host = list(in_memory(segments, sampler, 0, 0, _TRAIN_STEPS))
    batches, key = jax.device_put(host), jax.random.key(0)
    seconds = 0.0
    for _ in range(2):  # the first round compiles every length
        start = time.perf_counter()
        for step, batch in enumerate(batches):
            variables, opt_state, sums = step_of(objective, optimizer, rates, key, variables, opt_state, jnp.int32(step), batch)
        jax.block_until_ready((variables, sums))
        seconds = time.perf_counter() - start
    frames = sum(_frames(batch, experiment) for batch in host)
    return {"seconds": seconds, "frames_per_second": frames / seconds, "device": jax.devices()[0].device_kind}


MEASUREMENTS: dict[str, Callable[..., dict]] = {f.__name__: f for f in (load_and_align, sdk_load_and_align, prepare, pipeline, training)}


def _experiment(config_name: str, folder: str):
    """A config's own model, frontend and batches, on the prepared corpus in `folder`."""
    import importlib

    from jax_emossl.data.indices import Sampler
    from jax_emossl.experiment import build

    config = importlib.import_module(f"configs.{config_name}").get_config("mosei")
    config.data.prepared = folder
    experiment = build(config)
    segments = experiment.training_segments()
    crop = experiment.frontend.steps(config.train.crop)
    sampler = Sampler(segments.lengths, config.train.batch_size, crop, config.data.bucket_growth)
    return config, segments, sampler, experiment


def _frames(batch: dict[str, np.ndarray], experiment) -> int:
    """Frames at 100 Hz behind a batch; padding and filler rows do not count."""
    return int(np.sum(batch["num_steps"] * batch["weight"])) * experiment.frontend.frames_per_step


def _count(segments: Iterator) -> dict:
    lengths = [len(frames) for frames in segments]
    return {"segments": len(lengths), "frames": sum(lengths)}


def _peak_mb() -> float:
    """Most memory this process ever held. Not `ru_maxrss`, which a child takes over from its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def measure(name: str, *arguments: object) -> dict:
    """Runs a measurement in a fresh process."""
    command = [sys.executable, "-m", "experiments.bench_data", "--measure", name, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: the measurement {name} failed; its own words are above.")
    return json.loads(done.stdout.splitlines()[-1])


# Corpora.


def mosei_rows(small: bool) -> dict[str, list[dict]]:
    """The real segments of every video, in the order of their label rows."""
    with open(data_dir() / "mosei" / "segments.csv", newline="", encoding="utf-8") as file:
        videos: dict[str, list[dict]] = {}
        for row in csv.DictReader(file):
            videos.setdefault(row["video"], []).append(row)
    for rows in videos.values():
        rows.sort(key=lambda row: int(row["index"]))
    if small:
        kept: list[str] = []
        for fold in ("train", "valid", "test", ""):
            kept += [v for v, rows in videos.items() if rows[0]["fold"] == fold][: _SMALL_VIDEOS // 3]
        videos = {video: videos[video] for video in kept}
    return videos


def write_mosei(folder: Path, videos: dict[str, list[dict]]) -> list[str]:
    """Generated values in the real layout, with COVAREP's broken values; returns arguments of `prepare`."""
    rng = np.random.default_rng(0)

    def features():
        for video, rows in videos.items():
            number = int(max(float(row["end"]) for row in rows) * _RATE)
            frames = rng.standard_normal((number, _DIMENSIONS), np.float32)
            frames[rng.random(number) < 0.01, 3] = -np.inf
            times = np.arange(number + 1) / _RATE
            yield video, frames, np.column_stack([times[:-1], times[1:]])

    def labels():
        for video, rows in videos.items():
            yield video, rng.integers(0, 10, (len(rows), 7)) / 3, np.array([[float(r["start"]), float(r["end"])] for r in rows])

    csd.write(folder / "features.csd", "COVAREP", features(), {"synthetic": True})
    csd.write(folder / "labels.csd", "All Labels", labels())
    folds = {fold: [v for v, rows in videos.items() if rows[0]["fold"] == fold] for fold in prepared.FOLDS}
    (folder / "folds.json").write_text(json.dumps(folds))
    _forget(folder / "features.csd")
    names = {"features": "features.csd", "labels": "labels.csd", "folds": "folds.json"}
    return [word for option, name in names.items() for word in (f"--{option}", str(folder / name))]


def _forget(path: Path) -> None:
    """Drops a file from the page cache, so that it is read from disk."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def data_dir() -> Path:
    if "EMOSSL_DATA" not in os.environ:
        sys.exit("error: EMOSSL_DATA is not set: set it to the folder that holds nemo/ and mosei/segments.csv.")
    return Path(os.environ["EMOSSL_DATA"])


# Parts: each prints what it found and returns it.


def bench_nemo(features: Path, labels: Path, rounds: int) -> dict:
    """Both in turns, so that whatever else the machine does falls on both."""
    runs: dict[str, list[dict]] = {"load_and_align": [], "sdk_load_and_align": []}
    for _ in range(rounds):
        for name, found in runs.items():
            found.append(measure(name, features, labels))
    result = {
        name: {**found[0], **{key: statistics.median(run[key] for run in found) for key in ("seconds", "peak_mb")}}
        for name, found in runs.items()
    }
    ours, theirs = result["load_and_align"], result["sdk_load_and_align"]
    result["ratio"] = theirs["seconds"] / ours["seconds"]
    print(f"\nload + align of {features.name}, median of {rounds}:")
    for who, run in (("jax_emossl", ours), ("CMU SDK", theirs)):
        print(
            f"  {who:<10}  {run['seconds']:8.2f} s  {run['peak_mb']:7.0f} MB peak  {run['segments']:,} segments, {run['frames']:,} frames"
        )
    print(f"  jax_emossl is {result['ratio']:.0f} times faster")
    return result


def bench_mosei(folder: Path, small: bool) -> dict:
    """`prepare`, from the disk, with the stretches without labels too."""
    arguments = write_mosei(folder, mosei_rows(small))
    size = (folder / "features.csd").stat().st_size
    out = folder / "prepared"
    result = measure("prepare", *arguments, "--out", out, "--unlabelled")
    start = time.perf_counter()
    summary = prepared.load(out).summary
    result |= {"load_seconds": time.perf_counter() - start, "gigabytes": size / 1e9, "outside": summary["outside"]["segments"]}
    result["segments"] = {fold: row["segments"] for fold, row in summary["folds"].items()}
    counts = " / ".join(f"{result['segments'][fold]:,}" for fold in prepared.FOLDS)
    print(f"\nprepare, layout of CMU-MOSEI, {result['gigabytes']:.1f} GB of features:")
    print(f"  {result['seconds']:.0f} s, {result['peak_mb']:.0f} MB peak; opened again in {result['load_seconds']:.2f} s")
    print(f"  {counts} segments, {result['outside']} outside the folds")
    return result


def bench_pipeline(folder: Path, small: bool) -> dict:
    """What the loaders deliver and the train step takes, for crops and for whole segments."""
    result: dict = {}
    print("\nthousand frames (100 Hz) per second, delivered by the loaders and consumed by the train step:")
    for config in ("pretrain", "scratch"):
        found = {loader: measure("pipeline", config, folder / "prepared", loader, 20 if small else 200) for loader in ("memory", "tf.data")}
        found["train step"] = measure("training", config, folder / "prepared")
        result[config] = found
        rates = ", ".join(f"{name} {run['frames_per_second'] / 1000:,.0f}" for name, run in found.items())
        print(f"  {config:<9} {rates} ({found['train step']['device']})")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small", action="store_true", help="some 30 videos in place of nEMO and of all, and one round: a quick check")
    parser.add_argument("--all-cores", action="store_true", help="do not limit the runs to 2 cores")
    parser.add_argument("--tmp", help="folder for the generated corpus, which is removed at the end (default: the system's)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the prepared corpus of the part mosei as FOLDER")
    parser.add_argument("--out", help="also write the figures to this JSON file")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.keep and args.keep.exists():
        parser.error(f"--keep: {args.keep} is there: name a new folder.")
    if args.keep and "mosei" not in args.parts:
        parser.error("--keep is of the part mosei: name it.")
    if args.measure:
        name, *arguments = args.measure
        result = MEASUREMENTS[name](*arguments)
        print(json.dumps({**result, "peak_mb": _peak_mb()}))
        return
    if hasattr(os, "sched_setaffinity") and not args.all_cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    result: dict = {"small": args.small, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}
    folder = Path(tempfile.mkdtemp(prefix="bench_data.", dir=args.tmp))
    try:
        if {"mosei", "pipeline"} & set(args.parts) or args.small:
            result["mosei"] = bench_mosei(folder, args.small)
        if "nemo" in args.parts:
            nemo = data_dir() / "nemo"
            pair = ("features.csd", "labels.csd") if args.small else ("NEMO_eGeMAPSv02.csd", "NEMO_Labels.csd")
            result["nemo"] = bench_nemo(*((folder if args.small else nemo) / name for name in pair), 1 if args.small else _ROUNDS)
        if "pipeline" in args.parts:
            result["pipeline"] = bench_pipeline(folder, args.small)
        if args.keep:
            args.keep.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / "prepared", args.keep)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
