"""Evaluate a finished run (--config.init_from=WORKDIR) on a fold; the corpus is the run's own unless named."""

import ml_collections


def get_config(corpus: str = "") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "evaluate"
    config.init_from = ""  # workdir of the run to evaluate
    config.fold = "test"  # train | valid | test
    config.data = ml_collections.ConfigDict()
    for field in ("features", "labels", "folds", "words", "label_names", "prepared"):
        config.data[field] = ""  # "" = the run's own (see default.py)
    config.data.corpus = corpus
    return config
