"""Train encoder and emotion head from scratch: the baseline of `finetune.py`."""

from configs import default


def get_config(corpus: str = "demo"):
    config = default.get_config(corpus)
    config.objective.name = "emotion"
    config.objective.head = "auto"  # auto | intensity | category
    config.objective.loss = "huber"  # of the intensity head: l1 | l2 | huber
    config.objective.dropout = 0.3  # of the pooled statistics
    config.objective.selection = ""  # validation metric; "" = uar (category) or auroc (intensity)
    return config
