"""Train encoder and emotion head from scratch: `finetune.py` with an encoder that was never pretrained, and nothing else different."""

import ml_collections

from configs import finetune


def get_config(corpus: str = "") -> ml_collections.ConfigDict:
    config = finetune.get_config(corpus)
    config.init_from = ""
    return config
