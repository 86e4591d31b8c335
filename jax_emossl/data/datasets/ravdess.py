"""RAVDESS: 24 English-speaking actors (Livingstone & Russo 2018, PLoS ONE): seven numbers, of which the third is the emotion,
the fourth its strength (normal 2, strong 3 on our scale) and the last the actor."""

import re

from jax_emossl.data.datasets import MOSEI_ORDER, Utterance

WHERE = "https://zenodo.org/records/1188976"
EMOTIONS = MOSEI_ORDER
_EMOTION = dict(
    zip(("01", "02", "03", "04", "05", "06", "07", "08"), ("", "", "happy", "sad", "anger", "fear", "disgust", "surprise"), strict=True)
)
_STRENGTH = {"01": 2.0, "02": 3.0}


def parse(stem: str) -> Utterance | None:
    match = re.fullmatch(r"\d\d-\d\d-(0[1-8])-(0[12])-\d\d-\d\d-(\d\d)", stem)
    return match and Utterance(f"actor{match[3]}", _EMOTION[match[1]], _STRENGTH[match[2]])
