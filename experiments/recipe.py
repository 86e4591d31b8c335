"""Compares recipes of pretraining by a linear probe on the frozen encoder, scored on the validation fold alone.

  python -m jax_emossl.main --config=experiments/recipe.py:nemo --workdir=runs/recipe

The probe's regularisation is chosen on the same fold, alike for all recipes, so compare the values with one another only.
One validation speaker ranks recipes badly. So on nEMO two of every rotation's five training speakers join the validation
fold (`nemo_search*.json`): each of the nine speakers is then heard once by an encoder that does not know the voice, and
no rotation's test speakers are looked at.
"""

from collections.abc import Sequence
from pathlib import Path

from configs import quickstart

RECIPES = (
    ("default", {}),
    ("reconstruction alone", {"pretrain.objective.statistics": 0.0}),
    ("statistics x 1", {"pretrain.objective.statistics": 1.0}),
    ("75 % x 10", {"pretrain.objective.ratio": 0.75, "pretrain.objective.span": 10}),
    ("L2", {"pretrain.objective.loss": "l2"}),
    ("prior 0", {"data.norm_prior": 0.0}),
    ("12.5 steps a second", {"data.stack": 4, "pretrain.objective.span": 10, "pretrain.train.crop": 32}),
    ("width 128", {"model.width": 128}),
    ("no dropout", {"pretrain.train.dropout": 0.0}),
)


def get_config(corpus: str = "demo", variants: Sequence[tuple[str, dict]] = RECIPES):
    """The comparison of `variants`, each a name and the fields in which it differs."""
    config = quickstart.get_config(corpus)
    config.compare.arms = ("frozen", "random", "functionals")
    config.compare.label_counts = (60, 150, 600)
    config.compare.seeds = 3
    config.compare.fold = "valid"
    config.compare.variants = tuple((name, tuple(fields.items())) for name, fields in variants)
    if corpus == "nemo":
        config.data.folds = ",".join(str(Path(__file__).with_name(f"nemo_search{i}.json")) for i in (1, 2, 3))
        config.pretrain.train.steps = 1000
    return config
