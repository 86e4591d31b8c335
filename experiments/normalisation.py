"""What the rest of a recording is worth to a segment of it: the arms of `data.normalise_by`, for features and for what heads read.

python -m jax_emossl.main --config=experiments/normalisation.py:nemo --workdir=runs/normalisation

With all of it a test recording is known beforehand (transductive); with enrolment, a few segments of it, which are then not scored, so
that those variants are scored on a few segments less. A part of the label counts and seeds is compared.
"""

from experiments import label_fraction

BY = {"": "recording", "8 enrolled": "enrolment", "8 enrolled, neutral": "neutral", "causal": "causal", "no recording statistics": "none"}


def get_config(corpus: str = ""):
    config = label_fraction.get_config(corpus)
    # Of these the comparison has counts, or shares where the corpus asks for those.
    part = (("compare.label_counts", (60, 600, 0.01, 0.2)), ("compare.seeds", 3), ("data.enrolment", 8))
    config.compare.variants = tuple((name, (("data.normalise_by", by), *part)) for name, by in BY.items())
    return config
