"""What it is worth to choose on more labels than are counted: on the validation fold, or within the budget of N labels.

python -m jax_emossl.main --config=experiments/validation.py:nemo --workdir=runs/validation
"""

from experiments import label_fraction


def get_config(corpus: str = ""):
    config = label_fraction.get_config(corpus)
    config.compare.variants = (("", ()), ("validation within the budget", (("compare.validation", "budget"),)))
    return config
