"""What recording statistics are worth: features and pooled statistics normalised by each recording's own frames, or by the training fold alone.

python -m jax_emossl.main --config=experiments/normalisation.py:nemo --workdir=runs/normalisation

With its own frames a test recording is known beforehand (transductive). A part of the label counts and seeds is compared.
"""

from experiments import label_fraction


def get_config(corpus: str = ""):
    config = label_fraction.get_config(corpus)
    # Of these the comparison has counts, or shares where the corpus asks for those.
    part = (("compare.label_counts", (60, 600, 0.01, 0.2)), ("compare.seeds", 3))
    config.compare.variants = (("", part), ("no recording statistics", (("data.norm_prior", float("inf")), *part)))
    return config
