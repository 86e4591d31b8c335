"""SAVEE: 4 English men (Haq & Jackson 2010): the speaker (a folder of the original, here the first two letters), emotion, number."""

import re

from jax_emossl.data.datasets import MOSEI_ORDER, Utterance

WHERE = "http://kahlan.eps.surrey.ac.uk/savee"
EMOTIONS = MOSEI_ORDER
_EMOTION = {"a": "anger", "d": "disgust", "f": "fear", "h": "happy", "sa": "sad", "su": "surprise", "n": ""}


def parse(stem: str) -> Utterance | None:
    match = re.fullmatch(rf"([A-Z]{{2}})_({'|'.join(sorted(_EMOTION, key=len, reverse=True))})\d+", stem)
    return match and Utterance(match[1], _EMOTION[match[2]])
