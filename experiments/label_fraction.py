"""The learning curve: what pretraining buys at every label count, beside what people would use instead.

  python -m jax_emossl.main --config=experiments/label_fraction.py:nemo --workdir=runs/label_fraction

Every rotation of the corpus's folds (or those of --config.data.folds=a.json,b.json) is pretrained anew. The variant
`no recording statistics` repeats a part with features and pooled statistics normalised by the training fold alone.
"""

from configs import quickstart


def get_config(corpus: str = "demo"):
    config = quickstart.get_config(corpus)
    arms = ("pretrained", "frozen", "pretrained+functionals", "scratch", "random", "functionals")
    config.compare.arms = arms
    config.compare.seeds = 5
    config.compare.strategies = ("frozen", "full")
    config.compare.learning_rates = (3e-4, 3e-3)
    config.compare.label_counts = (0.002, 0.01, 0.05, 0.2, 0) if corpus == "mosei" else (30, 60, 150, 600, 0)
    without = (("data.norm_prior", float("inf")), ("compare.label_counts", (60, 600)), ("compare.seeds", 3))
    config.compare.variants = (("", ()), ("no recording statistics", without))
    config.finetune.train.steps = 150
    config.finetune.train.eval_every = 25
    if corpus == "nemo":
        config.data.folds = "rotations"
        config.data.bucket_growth = 1.5
        config.finetune.train.crop = 64  # 2.6 s; shorter batches and a random crop
    return config
