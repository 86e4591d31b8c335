"""Whether other speech helps: the encoder is pretrained on the target corpus, on the others, or on all, then fine-tuned or read out.

python -m jax_emossl.main --config=experiments/transfer.py:nemo+ravdess --workdir=runs/transfer

Every corpus is a target once. Scratch and the random encoder, which read no pretraining, stand beside every source.
"""

from experiments import label_fraction

SOURCES = ("own", "others", "own+others")


def get_config(corpus: str = "nemo+ravdess"):
    config = label_fraction.get_config(corpus)
    config.compare.variants = tuple((f"pretrained on {source}", (("compare.pretrain_on", source),)) for source in SOURCES)
    return config
