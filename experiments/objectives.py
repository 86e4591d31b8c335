"""Which pretext task suits engineered features: each is pretrained on equal terms, then read out and fine-tuned at every label count.

  python -m jax_emossl.main --config=experiments/objectives.py:nemo+ravdess --workdir=runs/objectives

To choose a default by, so it reports validation folds, and what a labelled segment chooses is chosen within the N labels: the reported fold
has chosen nothing but a pretraining's step, by its unlabelled loss. One division of each corpus and a part of the label counts and seeds are
compared, in some 75 minutes on 2 cores; `--config.data.folds=searches` takes every division, in which every speaker validates once. Beside
every task stand scratch, the random encoder and functionals, which read no pretraining. Fine-tunings have the same grid for all.
Pretrainings take the same steps and nearly the same floating point operations: a task that costs more per row has fewer rows in a batch,
in multiples of 4. `python -m experiments.bench_objectives --corpus ravdess` counts them: so many rows cost within an eighth of what 64 cost
masked_timesteps, but for modalities (Wu et al. 2023), which recognises transformations by an encoder of its own: its four cost half more,
and are learned from at a lower rate.
"""

from typing import Any

import ml_collections

from configs import combined, sarkar2020, wu2023
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
    "transformation_recognition": 8,  # each under every transformation
    "modalities": 4,
}


def get_config(corpus: str = "") -> ml_collections.ConfigDict:
    config = label_fraction.get_config(corpus)
    objective = config.pretrain.objective = combined.get_config(corpus).objective  # the fields of all objectives, in groups
    objective.transformation_recognition = _without_name(sarkar2020.get_config().objective) | {"reads": "encoder"}
    modalities = wu2023.get_config()  # the other encoder has fields of its own
    config.model.update({name: value for name, value in modalities.model.items() if name not in config.model})
    config.data.folds = "search"
    config.compare.fold, config.compare.validation = "valid", "budget"
    config.compare.label_counts, config.compare.seeds = (30, 150, 600), 2
    config.pretrain.train.steps, config.pretrain.train.eval_every = 1000, 200
    config.compare.arms = ("pretrained", "frozen", "pretrained+functionals", "scratch", "random", "functionals")
    config.compare.variants = tuple((name, _fields(name, rows, modalities)) for name, rows in ROWS.items())
    return config


def _without_name(group: ml_collections.ConfigDict) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "name"}


def _fields(name: str, rows: int, modalities: ml_collections.ConfigDict) -> tuple[tuple[str, Any], ...]:
    causal = "future_prediction" in name.split("+")  # its scratch and random encoders are causal, too
    fields: dict[str, Any] = {"pretrain.train.batch_size": rows, "model.causal": causal}
    if name == "modalities":  # transformations again, told by an encoder of other make
        name = modalities.objective.name
        fields["pretrain.train.learning_rate"] = 5e-4  # at the others' 2e-3 batches this small leave it at chance, at 1e-3 as well
        fields |= {f"model.{own}": value for own, value in modalities.model.items()}
        fields |= {f"pretrain.objective.{name}.{own}": value for own, value in _without_name(modalities.objective).items()}
    return tuple(fields.items()) + (("pretrain.objective.name", name),)
