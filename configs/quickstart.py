"""The whole method in minutes: pretrain, fine-tune from it and from scratch at a few label counts, compare."""

import ml_collections

from configs import default, finetune, pretrain


def get_config(corpus: str = "demo") -> ml_collections.ConfigDict:
    config = default.get_config(corpus)
    config.task = "compare"
    for name, part in (("pretrain", pretrain), ("finetune", finetune)):
        whole = part.get_config(corpus)
        config[name] = ml_collections.ConfigDict({"objective": whole.objective, "train": whole.train})
    for name in ("num_labels", "init_from", "objective", "train"):
        del config[name]

    config.compare = compare = ml_collections.ConfigDict()
    compare.arms = ("pretrained", "scratch")  # also: frozen, random, functionals, pretrained+functionals
    compare.label_counts = (30, 120, 0)  # labelled training segments; below 1 a share of the fold, 0 = all
    compare.seeds = 2  # each with its own labels, initial head and batches
    compare.learning_rates = (1e-3, 3e-3)  # the same grid for pretrained and scratch, chosen on validation
    compare.strategies = ("probe-then-full",)  # likewise; frozen means a logistic (ridge) regression on the frozen encoder
    compare.fold = "test"  # fold that is reported; valid for searches
    compare.variants = (("", ()),)  # (name, ((field, value), ...)): each is pretrained and compared

    if corpus == "demo":
        config.model.width = 32
        config.model.layers = 2
        config.data.stack = 4  # 12.5 model steps a second
        config.data.bucket_growth = 2.0
        config.pretrain.objective.ratio = 0.5
        config.pretrain.objective.span = 4
        config.pretrain.train.steps = 600
        config.pretrain.train.eval_every = 150
        config.pretrain.train.crop = 48
        config.finetune.train.steps = 120
        config.finetune.train.probe_steps = 40
        config.finetune.train.eval_every = 20
    else:
        compare.label_counts = (60,)
        compare.seeds = 3
        config.finetune.train.steps = 160
        config.finetune.train.probe_steps = 60
        config.finetune.train.eval_every = 20
    return config
