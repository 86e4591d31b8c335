"""Times what a comparison makes of its answers, on SYNTHETIC data of CMU-MOSEI's size: linear read-outs, estimates, the map, the report.

python -m experiments.bench_statistics FOLDER [--parts estimates,read-outs,map,report] [--recordings 678] [--segments 4662]
    [--rotations 1] [--categories] [--seeds 5]

FOLDER gets made-up predictions of every arm at five label counts, unless it holds some. Peak memory is the process's own, so that a
part's is to be measured alone.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from jax_emossl import figures, linear, report, results
from jax_emossl.arms import ARMS
from jax_emossl.comparison import Comparison
from jax_emossl.objectives import emotion
from jax_emossl.ordinal import Levels

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
_PRESENT = (0.53, 0.26, 0.21, 0.1, 0.18, 0.08)  # shares of segments, about those of CMU-MOSEI
_COUNTS = (30, 60, 150, 600, 0)
_TRAINING, _DIMENSIONS = 16_331, 763
_STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def labels(rng: np.random.Generator, segments: int) -> np.ndarray:
    """(S, E) intensities in thirds, most of them 0."""
    strength = rng.choice(np.arange(1, 10) / 3, (segments, len(EMOTIONS)), p=np.array([9, 6, 9, 3, 3, 3, 1, 1, 1]) / 36)
    return np.where(rng.random(strength.shape) < _PRESENT, strength, 0).astype(np.float32)


def write(out: Path, recordings: int, segments: int, rotations: int, seeds: int, category: bool) -> None:
    """A made-up comparison: results.json, predictions and what the map needs."""
    rng, rows, classes = np.random.default_rng(0), [], ["neutral", *EMOTIONS]
    for rotation in (f"rotation{i + 1}" for i in range(rotations)):
        size = segments // rotations
        of = np.sort(rng.choice(recordings // rotations, size, p=rng.dirichlet(np.full(recordings // rotations, 3.0))))
        names, truth = np.array([f"{rotation}_{i:04d}" for i in of]), labels(rng, size)
        target = rng.integers(0, len(classes), size) if category else truth
        levels, hard = Levels.of(truth), rng.normal(0, 0.3, (recordings, 1))[of]
        common = {"corpus": "made-up", "synthetic": True, "fold": "test", "step": 1, "undefined": {}, "variant": "", "folds": rotation}
        for k, (arm, count) in enumerate((arm, count) for arm in ARMS for count in _COUNTS):
            labelled = {"arm": arm, "budget": count, "num_labels": count or _TRAINING}
            values = {"uar": 1 / 7, "f1_macro": 0.04, "accuracy": 0.15} if category else {"auroc": 0.5, "mae": 0.3, "accuracy4": 0.7}
            if arm == "constant":
                rows.append({**common, **labelled, "seed": 0, "selection": None, "metrics": values})
                continue
            skill = 0.25 * np.log10(labelled["num_labels"]) + (0.2 if "pretrained" in ARMS[arm].reads else 0) + 0.01 * (k % 7) + hard
            for seed in range(seeds):
                if category:
                    said = {"scores": (rng.normal(size=(size, 7)) + skill * np.eye(7)[target]).astype(np.float32)}
                else:
                    scores = (skill * (truth > 0) + 0.3 * truth + rng.normal(size=truth.shape)).astype(np.float32)
                    decoded = levels.decode(scores, [1.0] * len(EMOTIONS))
                    said = {"scores": scores, "median": decoded.median.astype(np.float32), "four_class": decoded.four_class}
                kept = results.keep_predictions(out, Path(f"{rotation}/{arm}-{count}-{seed}"), **said, target=target, recordings=names)
                chosen = {"fold": "valid", "metric": next(iter(values)), "value": 0.5, "strategy": "full", "learning_rate": 1e-3}
                answered = {"classes": classes if category else EMOTIONS, "predictions": kept}
                rows.append({**common, **labelled, **answered, "seed": seed, "selection": chosen, "metrics": values})
    results.keep_predictions(out, Path("illustration"), **illustration(rng, truth, names))
    config = ml_collections.ConfigDict({"data": {"norm_prior": 180.0}})
    results.write(out / results.RESULTS_FILE, rows, config)


def illustration(rng: np.random.Generator, truth: np.ndarray, names: np.ndarray) -> dict[str, np.ndarray]:
    kinds = np.array(emotion.category_names(truth, EMOTIONS))
    vectors = rng.normal(size=(len(EMOTIONS), 384))
    return {
        name: (by * truth @ vectors + 4 * rng.normal(size=(len(truth), 384))).astype(np.float32)
        for name, by in (("before", 1), ("after", 3))
    } | {"emotion": kinds, "recording": names}


def read_outs(head: str) -> None:
    """One path of regularisations on the whole training fold."""
    rng = np.random.default_rng(0)
    truth = labels(rng, _TRAINING)
    if head == "category":
        truth *= np.arange(len(EMOTIONS)) == truth.argmax(1)[:, None]
    x = (truth @ rng.normal(0, 0.15, (len(EMOTIONS), _DIMENSIONS)) + rng.normal(size=(_TRAINING, _DIMENSIONS))).astype(np.float32)
    config = ml_collections.ConfigDict(
        {"head": head, "loss": "ordinal", "reads": "encoder", "dropout": 0.3, "standards_prior": 40.0, "selection": ""}
    )
    fold = {"train": ml_collections.ConfigDict({"labels": truth})}
    objective = emotion.make(config, None, None, type("Corpus", (), {"emotions": EMOTIONS, "fold": staticmethod(fold.__getitem__)}))
    for strength in _STRENGTHS:
        linear.read_out(objective, x, truth, strength)(x[:4662])


def timed(name: str, work: Callable[[], Any]) -> Any:
    begun, cpu = time.perf_counter(), time.process_time()
    made = work()
    took = {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"SYNTHETIC": name, **took, "peak_mb": round(peak)}), flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default="estimates,read-outs,map,report")
    parser.add_argument("--recordings", type=int, default=678)
    parser.add_argument("--segments", type=int, default=4662)
    parser.add_argument("--rotations", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--categories", action="store_true")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if not (args.folder / results.RESULTS_FILE).exists():
        write(args.folder, args.recordings, args.segments, args.rotations, args.seeds, args.categories)
    if "read-outs" in parts:
        for head in ("intensity", "category"):
            timed(f"six read-outs of {_TRAINING} x {_DIMENSIONS}, {head}", lambda head=head: read_outs(head))
    if "estimates" in parts:
        c = timed("predictions read", lambda: Comparison(args.folder))
        first, arms = c.headline[0], c.arms("")
        timed(f"{first} of one arm and count", lambda: c.estimate("", "pretrained", 30, first))
        timed(f"{first} of one difference", lambda: c.difference("", "pretrained", "scratch", 30, first))
        for metric in c.headline:
            timed(f"{metric} of all arms and counts", lambda m=metric: [c.estimate("", arm, b, m) for arm in arms for b in c.budgets("")])
            pairs = [(*pair, b) for pair in c.pairs("") for b in c.budgets("")]
            timed(f"{metric} of all differences", lambda m=metric, p=pairs: [c.difference("", *own, m) for own in p])
    if "map" in parts:
        timed("embedding map", lambda: figures.embedding_map(results.load_arrays(args.folder / results.ILLUSTRATION), "recording"))
    if "report" in parts:
        timed("report", lambda: report.write(args.folder))


if __name__ == "__main__":
    main()
