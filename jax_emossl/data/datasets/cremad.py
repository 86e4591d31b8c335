"""CREMA-D: 91 English-speaking actors (Cao et al. 2014, IEEE TAC): ACTOR_SENTENCE_EMOTION_LEVEL.

Low, medium and high are 1, 2 and 3 on our scale; where the level is unspecified (XX), as in most files, 3.
"""

import re

from jax_emossl.data.datasets import MOSEI_ORDER, Utterance

WHERE = "https://github.com/CheyneyComputerScience/CREMA-D"
EMOTIONS = MOSEI_ORDER
_EMOTION = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "SAD": "sad", "NEU": ""}
_LEVEL = {"LO": 1.0, "MD": 2.0, "HI": 3.0, "XX": 3.0, "X": 3.0}


def parse(stem: str) -> Utterance | None:
    match = re.fullmatch(rf"(\d{{4}})_[A-Z]{{3}}_({'|'.join(_EMOTION)})_({'|'.join(_LEVEL)})", stem)
    return match and Utterance(f"actor{match[1]}", _EMOTION[match[2]], _LEVEL[match[3]])
