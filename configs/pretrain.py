"""Pretrain the encoder by reconstructing masked timesteps of the training recordings; no labels."""

from configs import default


def get_config(corpus: str = "demo"):
    config = default.get_config(corpus)
    config.objective.name = "masked_timesteps"
    config.objective.ratio = 0.85  # share of steps masked; one span stays visible, so .76 in crops of 64
    config.objective.span = 20  # model steps masked in one piece
    config.objective.loss = "l1"  # l1 | l2 | huber
    config.objective.statistics = 3.0  # weight of telling the crop's mean, deviation, changes and quantiles; 0 = reconstruct only
    config.train.unlabelled = True
    config.train.steps = 2000
    config.train.batch_size = 64
    config.train.crop = 64
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 100
    config.train.eval_every = 250
    config.train.patience = 0
    config.train.log_every = 50
    return config
