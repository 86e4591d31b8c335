"""Fine-tune a pretrained encoder (--config.init_from=WORKDIR) on emotion labels."""

from configs import scratch


def get_config(corpus: str = "demo"):
    config = scratch.get_config(corpus)
    config.init_from = "REQUIRED"
    config.train.strategy = "probe-then-full"
    config.train.probe_steps = 100
    return config
