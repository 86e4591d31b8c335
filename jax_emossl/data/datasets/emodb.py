"""EmoDB: 10 German actors (Burkhardt et al. 2005, Interspeech): two digits of the speaker, text, a letter of the (German) emotion, take."""

import re

from jax_emossl.data.datasets import MOSEI_ORDER, Utterance

WHERE = "http://emodb.bilderbar.info"
EMOTIONS = (*MOSEI_ORDER, "boredom")
_EMOTION = {"W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happy", "T": "sad", "N": ""}


def parse(stem: str) -> Utterance | None:
    match = re.fullmatch(r"(\d\d)[ab]\d\d([WLEAFTN])[a-z]?", stem)
    return match and Utterance(f"speaker{match[1]}", _EMOTION[match[2]])
