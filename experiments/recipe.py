"""Compares recipes of pretraining by a linear probe on the frozen encoder, scored on the validation fold alone.

  python -m jax_emossl.main --config=experiments/recipe.py:nemo --workdir=runs/recipe

The probe's regularisation is chosen on the same fold, alike for all recipes, so compare the values with one another only.
"""

from collections.abc import Sequence

from configs import quickstart

RECIPES = (
    ("default", {}),
    ("75 % x 10", {"pretrain.objective.ratio": 0.75, "pretrain.objective.span": 10}),
    ("L2", {"pretrain.objective.loss": "l2"}),
    ("prior 0", {"data.norm_prior": 0.0}),
    ("12.5 steps a second", {"data.stack": 4, "pretrain.objective.span": 10, "pretrain.train.crop": 32}),
    ("width 128", {"model.width": 128}),
    ("dropout 0.1", {"pretrain.train.dropout": 0.1}),
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
        config.data.folds = "rotations"
    return config
