"""The learning curve: what pretraining buys at every label count, beside what people would use instead.

  python -m jax_emossl.main --config=experiments/label_fraction.py:nemo --workdir=runs/label_fraction

Every rotation of the corpus's folds (or those of --config.data.folds=a.json,b.json) is pretrained anew. The variant
`no recording statistics` repeats the linear arms with features and pooled statistics normalised by the training fold alone.
"""

from configs import quickstart


def get_config(corpus: str = "demo"):
    config = quickstart.get_config(corpus)
    config.compare.update(
        {
            "arms": ("pretrained", "frozen", "scratch", "functionals", "pretrained+functionals"),
            "label_counts": (30, 60, 150, 600, 0) if corpus != "mosei" else (0.002, 0.01, 0.05, 0.2, 0),
            "seeds": 5,
            "strategies": ("frozen", "probe-then-full", "full"),
            "variants": (
                ("", ()),
                ("no recording statistics", (("data.norm_prior", float("inf")), ("compare.arms", ("frozen", "functionals", "random")))),
            ),
        }
    )
    if corpus == "nemo":
        config.data.folds = "rotations"
        config.data.bucket_growth = 1.5
        config.finetune.train.crop = 64
    return config
