"""How many steps of pretraining pay: a linear probe on the frozen encoder, scored on the validation fold.

python -m jax_emossl.main --config=experiments/pretraining_length.py:nemo --workdir=runs/pretraining_length
"""

from experiments import recipe


def get_config(corpus: str = ""):
    return recipe.get_config(corpus, [(f"{steps} steps", {"pretrain.train.steps": steps}) for steps in (250, 500, 1000, 2000)])
