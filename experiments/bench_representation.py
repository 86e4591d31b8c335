"""How fast a fold is encoded, beside the products of matrices it is made of, at the speed of one large product in the same run.

python -m experiments.bench_representation FOLDER [--fold train] [--segments 0] [--rounds 3]

FOLDER is a prepared corpus: one in CMU-MOSEI's layout is left by `python -m experiments.bench_data --parts mosei --keep FOLDER`. The
encoder is the default one with random parameters; reading from disk, normalisation and padding are part of the time. Sides take turns,
medians are compared. Needs no TensorFlow.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import scratch
from jax_emossl import config as fields
from jax_emossl import memory, mesh
from jax_emossl.experiment import Experiment, build
from jax_emossl.representation import represent

_SIDE, _AT_ONCE = 1024, 20


def operations(experiment: Experiment) -> float:
    """Of the products for one model step: multiplications and additions, without attention among steps."""
    width, layers = experiment.config.model.width, experiment.config.model.layers
    return 2.0 * width * (experiment.frontend.dimension + layers * 12 * width)


def products() -> float:
    """Operations a second of one large product of matrices."""
    x, product = jnp.ones((_SIDE, _SIDE)), jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    begun = time.perf_counter()
    jax.block_until_ready([product(x, x) for _ in range(_AT_ONCE)])
    return 2.0 * _AT_ONCE * _SIDE**3 / (time.perf_counter() - begun)


def measure(folder: str, fold: str, segments: int, rounds: int) -> dict[str, float]:
    """Model steps a second, and the share of the time that products alone would take."""
    config = scratch.get_config("mosei")
    config.data.prepared = folder
    fields.resolve(config)
    mesh.use_cpu_cores([config.train.batch_size])
    experiment = build(config)
    part = experiment.segments(fold)
    if segments:
        part = part.take(np.random.default_rng(0).permutation(len(part))[:segments])
    params, number = experiment.params()["encoder"], int(part.lengths.sum())

    def encode() -> float:
        begun = time.perf_counter()
        represent(experiment.objective.encoder, params, {fold: part}, *experiment.sizes)
        return time.perf_counter() - begun

    first, took = encode(), [(encode(), products()) for _ in range(rounds)]
    seconds, peak = (statistics.median(own) for own in zip(*took, strict=True))
    return {
        "segments": len(part), "model_steps": number, "seconds": seconds, "seconds_with_compilation": first,
        "steps_per_second": number / seconds, "peak_gflops": peak / 1e9, "limit_steps_per_second": peak / operations(experiment),
        "share_of_limit": number / seconds * operations(experiment) / peak,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--fold", default="train")
    parser.add_argument("--segments", type=int, default=0, help="some of the fold, at random; 0 = all")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name, value in measure(**vars(arguments)).items():
        print(f"{name:>26} {value:,.3g}" if value < 1 else f"{name:>26} {value:,.0f}")


if __name__ == "__main__":
    memory.keep_freed()
    main()
