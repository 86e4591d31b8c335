"""Whether averaging over regularisations, which a linear arm does where validation cannot tell them apart, costs what one fixed C would give.

  python -m jax_emossl.main --config=experiments/regularisation.py:nemo+ravdess --workdir=runs/regularisation

No encoder is trained. Reported are validation folds, of which nothing is chosen by: what is chosen is chosen within the labels.
"""

from experiments import label_fraction

FIXED = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def get_config(corpus: str = ""):
    config = label_fraction.get_config(corpus)
    config.data.folds = "searches"
    config.compare.fold, config.compare.validation = "valid", "budget"
    config.compare.arms = ("functionals", "random")
    fixed = ((f"C = {strength:g}", (("compare.regularisations", (strength,)),)) for strength in FIXED)
    config.compare.variants = (("averaged", ()), *fixed)
    return config
