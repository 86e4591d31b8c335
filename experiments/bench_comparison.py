"""How long a comparison takes, by phase, and how much memory: the command that people type, in a process of its own.

python -m experiments.bench_data --parts mosei --keep prepared/mosei    # generated, in CMU-MOSEI's layout
python -m experiments.bench_comparison runs/mosei --config=experiments/label_fraction.py:mosei \\
    --config.data.prepared=prepared/mosei --config.compare.seeds=1

All but the workdir, which must be new, is handed on to `jax_emossl.main`. Phases are told by the times of the files that they end with, so one
that is stopped is not timed. On Linux "peak" counts mapped pages of the corpus, too, which the system takes back where it needs them.
"""

import argparse
import collections
import datetime
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from jax_emossl import results
from jax_emossl.arms import ARMS

_ROOT = Path(__file__).parents[1]


def phases(workdir: Path, begun: float, ended: float) -> dict[str, float]:
    """Seconds of each phase, over all rotations: what passes until a file is written belongs to the phase that writes it.

    Args:
      begun, ended: times of the run (s since the epoch).
    """
    ends = dict.fromkeys(workdir.glob("pretrain/**/metrics.jsonl"), "start and pretraining")
    for row in results.read(workdir / results.RESULTS_FILE)["runs"]:
        if "predictions" in row:
            tuned = ARMS[row["arm"]].mechanism == "tuned"
            ends[workdir / row["predictions"]] = f"fine-tuning, {row['num_labels']:,} labels" if tuned else "encoding and linear answers"
    seconds: dict[str, float] = collections.defaultdict(float)
    for end, name in sorted((file.stat().st_mtime, name) for file, name in ends.items()):
        seconds[name] += end - begun
        begun = end
    return {**seconds, "report": ended - begun}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench_comparison", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    arguments, flags = parser.parse_known_args()
    if arguments.workdir.exists():
        parser.error(f"{arguments.workdir} is there: name a new folder, since what is done already takes no time.")
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    begun = time.time()
    command = [sys.executable, "-m", "jax_emossl.main", f"--workdir={arguments.workdir}", *flags]
    if code := subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode:
        sys.exit(code)
    ended = time.time()
    for name, seconds in {**phases(arguments.workdir, begun, ended), "whole": ended - begun}.items():
        print(f"{name:>28} {datetime.timedelta(seconds=round(seconds))!s:>8}")
    print(f"{'peak memory':>28} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:5.2f} GB")


if __name__ == "__main__":
    main()
