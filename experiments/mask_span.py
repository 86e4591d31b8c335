"""How long the masked pieces should be: a linear probe on the frozen encoder, scored on the validation fold.

python -m jax_emossl.main --config=experiments/mask_span.py:nemo --workdir=runs/mask_span
"""

from experiments import recipe


def get_config(corpus: str = ""):
    return recipe.get_config(corpus, [(f"span {span:g} s", {"pretrain.objective.span": span}) for span in (0.0, 0.2, 0.4, 0.8)])
