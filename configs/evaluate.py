"""Evaluate a finished run on a fold of its own corpus, or of another that is named.

python -m jax_emossl.main --config=configs/evaluate.py --config.init_from=runs/finetune --config.fold=test
"""

import ml_collections


def get_config(corpus: str = "") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "evaluate"  # file in tasks
    config.init_from = "REQUIRED"  # workdir of the run to evaluate
    config.fold = "test"  # train | valid | test

    config.data = data = ml_collections.ConfigDict()
    data.corpus = corpus  # file in data/corpora; "" = the run's own
    data.features = ""  # .csd of features, or several joined by commas, the first of which has the frames; "" = the run's own
    data.labels = ""  # .csd of labels; "" = the run's own
    data.folds = ""  # JSON of recording ids per fold, or cmu_mosei; "" = the run's own
    data.speakers = ""  # JSON of who speaks in each recording; "" = as in the run
    data.words = ""  # .csd of word intervals: average the frames of each word; "" = as in the run
    data.label_names = ""  # comma-separated names of the label columns, where the file has none; "" = as in the run
    data.prepared = ""  # folder written by jax_emossl.prepare, or tfds:DIR, instead of the .csd files; "" = the run's own
    return config
