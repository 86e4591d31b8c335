"""What choosing costs: on the validation fold, within the budget of N labels, or not at all, with settings that are fixed beforehand.

python -m jax_emossl.main --config=experiments/validation.py:nemo --workdir=runs/validation

The fixed ones are the middle of the grids: one strategy, one learning rate, one regularisation. The step is still chosen.
"""

from experiments import label_fraction

FIXED = (("compare.strategies", ("full",)), ("compare.learning_rates", (1e-3,)), ("compare.regularisations", (3e-2,)))


def get_config(corpus: str = ""):
    config = label_fraction.get_config(corpus)
    budget = (("compare.validation", "budget"),)
    config.compare.variants = (("", ()), ("validation within the budget", budget), ("fixed settings", FIXED))
    return config
