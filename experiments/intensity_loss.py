"""What the intensity head should learn: a distribution over levels, or a number by Huber loss; every arm at every label count.

python -m jax_emossl.main --config=experiments/intensity_loss.py:ravdess --workdir=runs/intensity_loss
"""

from experiments import label_fraction


def get_config(corpus: str = ""):
    config = label_fraction.get_config(corpus)
    config.finetune.objective.head = "intensity"
    config.compare.variants = (("", ()), ("Huber", (("finetune.objective.loss", "huber"),)))
    return config
