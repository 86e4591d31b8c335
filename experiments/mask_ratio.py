"""How much of the features to mask in pretraining: a linear probe on the frozen encoder, scored on the validation fold.

python -m jax_emossl.main --config=experiments/mask_ratio.py:nemo --workdir=runs/mask_ratio
"""

from experiments import recipe


def get_config(corpus: str = ""):
    return recipe.get_config(corpus, [(f"ratio {ratio:g}", {"pretrain.objective.ratio": ratio}) for ratio in (0.15, 0.5, 0.75, 0.85)])
