"""How much unlabelled speech pretraining needs: a linear probe on the frozen encoder, scored on the validation fold.

python -m jax_emossl.main --config=experiments/unlabelled_data.py:nemo --workdir=runs/unlabelled_data
"""

from experiments import recipe


def get_config(corpus: str = ""):
    shares = [(f"{share:.0%} of the segments", {"pretrain.train.share": share}) for share in (0.1, 0.3, 1.0)]
    return recipe.get_config(corpus, shares)
