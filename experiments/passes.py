"""How long fine-tuning pays: passes over the labels, and the fewest steps, scored on a validation fold that chose nothing.

python -m jax_emossl.main --config=experiments/passes.py:nemo+ravdess --workdir=runs/passes

Steps and settings are chosen within the labels.
"""

from experiments import label_fraction


def get_config(corpus: str = ""):
    config = label_fraction.get_config(corpus)
    config.data.folds = "searches"
    config.compare.arms = ("pretrained", "scratch")
    config.compare.label_counts = (150, 600, 0)
    config.compare.seeds = 2
    config.compare.fold, config.compare.validation = "valid", "budget"
    longer = (("finetune.train.epochs", 16.0), ("finetune.train.steps", 120))
    config.compare.variants = (("8 passes, 60 steps", ()), ("16 passes, 120 steps", longer))
    return config
