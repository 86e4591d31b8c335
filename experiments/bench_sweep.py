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

from jax_emossl import memory

SIDES = ("sweep", "one by one, all devices", "one by one, one device")


FIELDS = {"num_labels": 60, "train.strategy": "full", "train.crop": 2.56, "train.patience": 0}


def fields_of(steps: int, seed: int) -> dict:
    return FIELDS | {"seed": seed, "train.steps": steps, "train.eval_every": steps}


def measure(side: str, corpus: str, members: int, steps: int, repeats: int) -> list[list[float]]:
    """Seconds of each training (of the sweep as one) in each repeat, the first with compilation; runs in a process of its own."""
    from jax_emossl import mesh

    if side != "one by one, one device":
        mesh.use_cpu_cores((32,))
    from configs import scratch
    from jax_emossl import config as fields
    from jax_emossl.experiment import build
    from jax_emossl.loop import fit
    from jax_emossl.resident import Resident

    trainings, first = [], None
    for seed in range(members):
        config = scratch.get_config(corpus)
        config.update_from_flattened_dict(fields_of(steps, seed))
        fields.resolve(config, FIELDS)
        trainings.append(build(config, first and first.corpus))
        first = first or trainings[0]
    background, valid = first.segments("train"), first.segments("valid")

    def made(own):
        return own.member(background.take(own.training_segments().positions), valid, background)

    def sweep():
        return fit(first.objective, [made(own) for own in trainings], first.config, resident=Resident([background, valid]))

    def alone(own):
        return fit(own.objective, [made(own)], own.config)

    runs = [sweep] if side == "sweep" else [functools.partial(alone, own) for own in trainings]
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
        command = [sys.executable, "-m", "jax_emossl.main", f"--config=configs/scratch.py:{corpus}", f"--workdir={folder}/run"]
        command += [f"--config.{k}={v}" for k, v in fields_of(steps, seed).items()]
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
    memory.keep_freed()
    main()
