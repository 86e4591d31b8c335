"""How long a pretraining takes to its first step, and how much faster its steps are on more devices and in more processes.

python -m experiments.bench_scaling [CORPUS] [--layouts 1x1 1x2 2x1] [--steps 50] [--rounds 3]

The command that people type is run, in processes of its own, so starting, reading and compiling are part of the time. A layout is
processes x devices of each; on CPU these are shares of the same cores, so beyond their number nothing can be gained, and one device has
several, too. Layouts take turns, medians are compared. A step is what a run of --steps takes longer than one of a single step. "cold" is
the first run of a layout, which compiles; the others find its programs in the cache. Needs no TensorFlow.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

_ROOT = Path(__file__).parents[1]


def seconds(corpus: str, layout: str, steps: int, cache: Path) -> float:
    """Of a whole run, whose compiled programs are kept in `cache`."""
    processes, devices = map(int, layout.split("x"))
    fields = {"train.steps": steps, "train.eval_every": steps, "train.log_every": steps, "train.warmup_steps": 0}
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        command = [sys.executable, "-m", "jax_emossl.main", f"--config={_ROOT}/configs/pretrain.py:{corpus}", f"--workdir={folder}/run"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        together = [f"--num_processes={processes}", f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"] if processes > 1 else []
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(_ROOT)}
        probe.close()
        begun = time.perf_counter()
        started = [
            subprocess.Popen(
                [*command, *together, *([f"--process_id={i}"] if together else [])],
                env=environment,
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )  # fmt: skip
            for i in range(processes)
        ]
        said = [process.communicate()[1] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError("\n".join(said))
        return time.perf_counter() - begun


def measure(corpus: str, layouts: list[str], steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """By layout: seconds to the end of the first step, compiled and cached, and milliseconds of a step."""
    took = {layout: {"cold": 0.0, "cached": [], "long": []} for layout in layouts}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(layouts) * (1 + 2 * rounds), unit="run", leave=False, disable=None) as bar:
        seconds(corpus, layouts[0], 1, Path(folder, "corpus"))  # which is prepared by it
        for layout, own in took.items():
            own["cold"] = seconds(corpus, layout, 1, Path(folder, layout))
            bar.update()
        for _ in range(rounds):
            for layout, own in took.items():
                for name, number in (("cached", 1), ("long", 1 + steps)):
                    own[name].append(seconds(corpus, layout, number, Path(folder, layout)))
                    bar.update()
    return {
        layout: {
            "cold_s": own["cold"],
            "cached_s": statistics.median(own["cached"]),
            "step_ms": 1e3 * statistics.median(long - short for long, short in zip(own["long"], own["cached"], strict=True)) / steps,
        }
        for layout, own in took.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", default="demo")
    parser.add_argument("--layouts", nargs="+", default=["1x1", "1x2", "2x1"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    made = measure(**vars(parser.parse_args()))
    reference = next(iter(made.values()))["step_ms"]
    print(f"{'processes x devices':>20} {'cold start':>11} {'cached':>9} {'cold / cached':>14} {'step':>10} {'times as fast':>14}")
    for layout, own in made.items():
        start = f"{own['cold_s']:9.1f} s {own['cached_s']:7.1f} s {own['cold_s'] / own['cached_s']:14.2f}"
        print(f"{layout:>20} {start} {own['step_ms']:7.1f} ms {reference / own['step_ms']:14.2f}")


if __name__ == "__main__":
    main()
