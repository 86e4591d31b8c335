"""How long the masked pieces should be: a linear probe on the frozen encoder, scored on the validation fold.

python -m jax_emossl.main --config=experiments/mask_span.py:nemo --workdir=runs/mask_span
"""

from experiments import recipe


def get_config(corpus: str = "demo"):
    return recipe.get_config(corpus, [(f"span {span}", {"pretrain.objective.span": span}) for span in (1, 5, 10, 20)])
