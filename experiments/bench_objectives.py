"""What a row of a batch costs in the pretrainings of experiments/objectives.py, beside masked_timesteps.

python -m experiments.bench_objectives [--corpus demo] [--steps 0]

Floating point operations are those that XLA counts in a step before it optimises. With --steps, the step is compiled and so many are
timed, on a machine that should have nothing else to do.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp

from experiments import objectives
from jax_emossl import config as fields
from jax_emossl import memory
from jax_emossl.data import corpora
from jax_emossl.data.indices import Sampler
from jax_emossl.experiment import build
from jax_emossl.loop import train_step
from jax_emossl.optimizer import Optimizer, Rates


def measure(config, steps: int, corpus=None):
    """Operations of a step (B rows), its median seconds (nan without `steps`), B, and the corpus."""
    experiment = build(config, corpus)
    train = experiment.training_segments()
    member = experiment.member(train, experiment.segments("valid"), train)
    rows, places = config.train.batch_size, train.basis[:, 1]
    sampler = Sampler(train.lengths, rows, member.crop, config.data.bucket_growth, places, experiment.objective.together)
    batch = jax.device_put(train.gather(sampler.indices(0, 0)))
    optimizer, variables = Optimizer.make(config.train), {"params": member.params, "constants": member.constants}
    state = jax.device_put((variables, optimizer.transformation().init(member.params)))
    step = functools.partial(train_step, experiment.objective, optimizer, Rates.make(config.train), jax.random.key(0))
    lowered, seconds = jax.jit(step).lower(*state, jnp.int32(0), batch), []
    compiled = lowered.compile() if steps else None
    for i in range(steps):
        start = time.perf_counter()
        *state, sums = compiled(*state, jnp.int32(i), batch)
        jax.block_until_ready(sums)
        seconds.append(time.perf_counter() - start)
    return lowered.cost_analysis()["flops"], statistics.median(seconds) if seconds else float("nan"), rows, experiment.corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", default="demo")
    parser.add_argument("--steps", type=int, default=0)
    arguments = parser.parse_args()
    whole = objectives.get_config(arguments.corpus)
    fields.resolve(whole)
    first = corpus = None
    print(f"{'objective':32}{'rows':>6}{'MFLOP a row':>14}{'a step, relative':>18}{'ms a step':>12}")
    for name, changes in whole.compare.variants:
        own = fields.part(fields.varied(whole, name, changes, corpora.targets(whole.data)[0]), "pretrain")
        flops, seconds, rows, corpus = measure(own, arguments.steps, corpus)
        first = first or flops
        print(f"{name:32}{rows:6}{flops / rows / 1e6:14.1f}{flops / first:18.2f}{1e3 * seconds:12.1f}", flush=True)


if __name__ == "__main__":
    memory.keep_freed()
    main()
