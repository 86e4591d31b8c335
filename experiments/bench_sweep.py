"""Times a sweep against the same trainings one by one in one process, and as separate processes.

python -m experiments.bench_sweep [--members 16] [--steps 150] [--repeats 2] [--rounds 2] [--corpus nemo]

Members train from scratch on 60 labels at width 64, 3 layers, batches of 32 x 64 steps, and are evaluated once on the
validation fold. Sides alternate and medians are compared. Times in one process are given with the compilation of their
first run and, of later repeats, without; separate processes start, compile and train, as a shell loop over `main` does. One
by one, every training has all devices (rows shared) or one device. There and in separate processes a quarter of the members,
at least two, is timed; each of the others counts as their median, in one process without the first, which alone compiles.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

SIDES = ("sweep", "one by one, all devices", "one by one, one device")


def config_of(corpus: str, steps: int, seed: int):
    from configs import scratch

    config = scratch.get_config(corpus)
    config.seed, config.num_labels = seed, 60
    config.train.update({"steps": steps, "eval_every": steps, "crop": 64, "patience": 0})
    return config


def measure(side: str, corpus: str, members: int, steps: int, repeats: int) -> list[list[float]]:
    """Seconds of each training (of the sweep as one) in each repeat, the first with compilation; runs in a process of its own."""
    from jax_emossl import mesh

    if side != "one by one, one device":
        mesh.use_cpu_cores((32,))
    from jax_emossl import sweep
    from jax_emossl.experiment import build
    from jax_emossl.train import fit

    configs = [config_of(corpus, steps, seed) for seed in range(members)]
    first = build(configs[0])
    background, valid = first.segments("train"), first.segments("valid")
    trains = [build(c, first.corpus, first.frontend).training_segments() for c in configs]
    trains = [background.take(train.positions) for train in trains]
    if side == "sweep":
        made = [sweep.Member(c, t, valid, None, background) for c, t in zip(configs, trains, strict=True)]
        runs = [lambda: sweep.fit_members(first.objective, made)]
    else:
        runs = [functools.partial(fit, first.objective, t, valid, c, background=background) for c, t in zip(configs, trains, strict=True)]
    return [[_seconds(run) for run in runs] for _ in range(repeats)]


def _seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def whole(own: Sequence[float], number: int) -> float:
    """Seconds of `number` trainings in one process, of which the first are timed; the very first may have compiled."""
    rest = number - len(own)
    return sum(own) + (rest * statistics.median(own[1:]) if rest else 0)


def separate(corpus: str, steps: int, seed: int) -> float:
    """Seconds of one training in a process of its own, from the command line to its results."""
    with tempfile.TemporaryDirectory() as folder:
        fields = {"seed": seed, "num_labels": 60, "train.steps": steps, "train.eval_every": steps, "train.crop": 64, "train.patience": 0}
        command = [sys.executable, "-m", "jax_emossl.main", f"--config=configs/scratch.py:{corpus}", f"--workdir={folder}/run"]
        command += [f"--config.{k}={v}" for k, v in fields.items()]
        return _seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=2, help="runs in each process, of which the first compiles")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--corpus", default="nemo" if os.environ.get("EMOSSL_DATA") else "demo")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.corpus, arguments.members, arguments.steps, arguments.repeats)))
        return
    times: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    alone = []
    timed = min(arguments.members, max(2, math.ceil(arguments.members / 4)))
    with tqdm(total=arguments.rounds * (len(SIDES) + 1), desc="timing", leave=False, disable=None) as bar:
        for _ in range(arguments.rounds):
            for side in SIDES:
                members, number = (arguments.members, 1) if side == "sweep" else (timed, arguments.members)
                command = [sys.executable, "-m", "experiments.bench_sweep", "--side", side, "--corpus", arguments.corpus]
                command += ["--members", str(members), "--steps", str(arguments.steps), "--repeats", str(arguments.repeats)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                times[side].append([whole(own, number) for own in json.loads(done.stdout.splitlines()[-1])])
                bar.update()
            alone += [separate(arguments.corpus, arguments.steps, seed) for seed in range(timed)]
            bar.update()
    print(
        f"{arguments.members} members of {arguments.steps} steps on {arguments.corpus}; seconds, medians over {arguments.rounds} alternated rounds"
    )
    first = {side: statistics.median(own[0] for own in times[side]) for side in SIDES}
    for side in SIDES:
        print(f"  {side}: {first[side]:.1f} with compilation ({first[side] / first['sweep']:.2f} times the sweep)", end="")
        later = {name: [seconds for own in times[name] for seconds in own[1:]] for name in ("sweep", side)}
        if arguments.repeats > 1:
            ours, own = (statistics.median(later[name]) for name in ("sweep", side))
            print(f", {own:.1f} without ({own / ours:.2f} times)", end="")
        print()
    total = arguments.members * statistics.median(alone)
    print(f"  separate processes, one after the other: {total:.1f} ({total / first['sweep']:.2f} times the sweep with its compilation)")


if __name__ == "__main__":
    main()
