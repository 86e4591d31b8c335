"""Times a sweep against the same trainings one by one in one process, and as separate processes.

  python -m experiments.bench_sweep [--members 16] [--steps 60] [--repeats 3] [--rounds 2] [--corpus nemo]

Members train from scratch on 60 labels at width 64, 3 layers, batches of 32 x 64 steps, and are evaluated once on the
validation fold. Sides alternate and medians are compared. Times in one process are given with and without the compilation
of their first run; separate processes start, compile and train, as a shell loop over `main` does. One by one uses all
devices for every training (rows shared) or one device, whichever is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

SIDES = ("sweep", "one by one, all devices", "one by one, one device")


def config_of(corpus: str, steps: int, seed: int):
    from configs import scratch

    config = scratch.get_config(corpus)
    config.seed, config.num_labels = seed, 60
    config.train.update({"steps": steps, "eval_every": steps, "crop": 64, "patience": 0})
    return config


def measure(side: str, corpus: str, members: int, steps: int, repeats: int) -> list[float]:
    """Seconds of each repeat, the first with compilation; runs in a process of its own."""
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
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        if side == "sweep":
            made = [sweep.Member(c, t, valid, None, background) for c, t in zip(configs, trains, strict=True)]
            sweep.fit_members(first.objective, made)
        else:
            for config, train in zip(configs, trains, strict=True):
                fit(first.objective, train, valid, config, background=background)
        seconds.append(time.perf_counter() - start)
    return seconds


def separate(corpus: str, steps: int, seed: int) -> float:
    """Seconds of one training in a process of its own, from the command line to its results."""
    with tempfile.TemporaryDirectory() as folder:
        fields = {"seed": seed, "num_labels": 60, "train.steps": steps, "train.eval_every": steps, "train.crop": 64, "train.patience": 0}
        command = [sys.executable, "-m", "jax_emossl.main", f"--config=configs/scratch.py:{corpus}", f"--workdir={folder}/run"]
        start = time.perf_counter()
        subprocess.run([*command, *(f"--config.{k}={v}" for k, v in fields.items())], check=True, capture_output=True)
        return time.perf_counter() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3, help="at least 2: the first of each process compiles")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--corpus", default="nemo" if os.environ.get("EMOSSL_DATA") else "demo")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.corpus, arguments.members, arguments.steps, arguments.repeats)))
        return
    first: dict[str, list[float]] = {side: [] for side in SIDES}
    later: dict[str, list[float]] = {side: [] for side in SIDES}
    alone = []
    rounds = arguments.rounds
    with tqdm(total=rounds * (len(SIDES) + 1), desc="timing", leave=False, disable=None) as bar:
        for turn in range(rounds):
            for side in SIDES:
                command = [sys.executable, "-m", "experiments.bench_sweep", "--side", side, "--corpus", arguments.corpus]
                command += ["--members", str(arguments.members), "--steps", str(arguments.steps), "--repeats", str(arguments.repeats)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                compiling, *rest = json.loads(done.stdout.splitlines()[-1])
                first[side].append(compiling)
                later[side] += rest
                bar.update()
            alone += [separate(arguments.corpus, arguments.steps, seed) for seed in (2 * turn, 2 * turn + 1)]
            bar.update()
    print(f"{arguments.members} members of {arguments.steps} steps on {arguments.corpus}; seconds, medians of {rounds} alternated rounds")
    sweep_first, sweep_later = statistics.median(first["sweep"]), statistics.median(later["sweep"])
    for side in SIDES:
        with_compilation, without = statistics.median(first[side]), statistics.median(later[side])
        ratios = f"{with_compilation / sweep_first:.2f} and {without / sweep_later:.2f} times the sweep"
        print(f"  {side}: {with_compilation:.1f} with compilation, {without:.1f} without ({ratios})")
    total = arguments.members * statistics.median(alone)
    print(
        f"  separate processes: {total:.1f} ({arguments.members} times the median of {len(alone)}, one after the other; "
        f"{total / sweep_first:.2f} times the sweep with its compilation)"
    )


if __name__ == "__main__":
    main()
