"""nEMO: 9 Polish actors (Christop 2024, LREC-COLING): SPEAKER_EMOTION_SENTENCE."""

import re

from jax_emossl.data.datasets import MOSEI_ORDER, Utterance

WHERE = "https://github.com/amu-cai/nEMO"
EMOTIONS = MOSEI_ORDER
_EMOTION = {"anger": "anger", "fear": "fear", "happiness": "happy", "neutral": "", "sadness": "sad", "surprised": "surprise"}


def parse(stem: str) -> Utterance | None:
    match = re.fullmatch(rf"([A-Za-z]+\d+)_({'|'.join(_EMOTION)})_\d+", stem)
    return match and Utterance(match[1], _EMOTION[match[2]])
