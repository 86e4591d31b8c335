"""Whether to encode the unmasked steps alone in pretraining: a linear probe on the frozen encoder, scored on the validation fold.

python -m jax_emossl.main --config=experiments/visible_only.py:nemo --workdir=runs/visible_only

Every pretraining takes the same steps, so those with a decoder take less time (`python -m experiments.bench_step` says how much).
"""

from experiments import recipe

_DECODER, _SHORT = "pretrain.objective.decoder_width", {"pretrain.objective.ratio": 0.75, "pretrain.objective.span": 0.4}


def get_config(corpus: str = ""):
    variants = [
        ("all steps", {}),
        ("unmasked alone, decoder of 16", {_DECODER: 16}),
        ("unmasked alone, decoder of 32", {_DECODER: 32}),
        ("75 % x 0.4 s, all steps", _SHORT),
        ("75 % x 0.4 s, unmasked alone, decoder of 16", {**_SHORT, _DECODER: 16}),
    ]
    return recipe.get_config(corpus, variants)
