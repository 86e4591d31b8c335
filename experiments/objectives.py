"""Which pretext task suits engineered features: each is pretrained on equal terms, then read out and fine-tuned at every label count.

  python -m jax_emossl.main --config=experiments/objectives.py:nemo --workdir=runs/objectives

Beside every task stand scratch, the random encoder and functionals, which read no pretraining. Fine-tunings have the same grid for all.
Pretrainings take the same steps and nearly the same floating point operations: a task that costs more per row has fewer rows in a batch,
in multiples of 4. `python -m experiments.bench_objectives` counts them: so many rows cost within a tenth of what 64 cost masked_timesteps.
"""

import ml_collections

from configs import combined
from experiments import label_fraction

ROWS = {
    "masked_timesteps": 64,
    "alteration": 64,
    "future_prediction": 64,
    "cluster_identities": 64,
    "teacher": 48,
    "agreement": 32,
    "masked_timesteps+agreement": 20,
    "masked_timesteps+teacher": 28,
}


def get_config(corpus: str = "") -> ml_collections.ConfigDict:
    config = label_fraction.get_config(corpus)
    config.pretrain.objective = combined.get_config(corpus).objective  # the fields of all objectives, in groups
    config.compare.arms = ("pretrained", "frozen", "pretrained+functionals", "scratch", "random", "functionals")
    config.compare.variants = tuple((name, _fields(name, rows)) for name, rows in ROWS.items())
    return config


def _fields(name: str, rows: int) -> tuple[tuple[str, str | int | bool], ...]:
    causal = "future_prediction" in name.split("+")  # its scratch and random encoders are causal, too
    return ("pretrain.objective.name", name), ("pretrain.train.batch_size", rows), ("model.causal", causal)
