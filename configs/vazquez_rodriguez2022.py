"""Pretrain as Vazquez-Rodriguez, Lefebvre, Cumin & Crowley 2022 (arXiv 2204.05103) do: reconstruct masked points of a signal.

  python -m jax_emossl.main --config=configs/vazquez_rodriguez2022.py:nemo+ravdess --workdir=runs/vazquez_rodriguez2022
  python -m jax_emossl.main --config=configs/finetune.py:nemo --config.init_from=runs/vazquez_rodriguez2022 \
      --config.objective.reads=summary --config.train.strategy=full

From the paper: convolutions over time and a transformer with a learned [CLS] encode the signal; some of its points are masked and
reconstructed; several corpora are pooled for that (join their names by +); fine-tuning then trains the encoder and a head on [CLS],
which nothing has trained before. Our own choices, which the paper's setting for other signals does not fix: everything else.

A corpus may bring settings of its own (SETTINGS in jax_emossl/data/corpora); a run says at its start which. Flags win over both.
"""

import ml_collections


def get_config(corpus: str = "") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "train"  # file in tasks
    config.seed = 0  # of parameters and batches
    config.fixed = ("objective.ratio", "objective.span")  # fields of this file that a corpus's settings leave as they are

    config.data = data = ml_collections.ConfigDict()
    data.corpus = corpus  # file in data/corpora; "" = demo (synthetic), unless features or prepared are given
    data.features = ""  # .csd of features, or several joined by commas, the first of which has the frames; "" = the corpus's own
    data.labels = ""  # .csd of labels; "" = the corpus's own
    data.folds = ""  # JSON of recording ids per fold, or cmu_mosei; "" = the corpus's own
    data.speakers = ""  # JSON of who speaks in each recording; "" = the corpus's own, or each recording by itself
    data.words = ""  # .csd of word intervals: average the frames of each word; "" = frames
    data.label_names = ""  # comma-separated names of the label columns, where the file has none
    data.prepared = ""  # folder written by jax_emossl.prepare, or tfds:DIR, instead of the .csd files
    data.normalise_by = "recording"  # recording (all of it) | enrolment | neutral (drawn segments, not scored) | causal | none
    data.enrolment = 8  # segments of each recording that are drawn, where some are
    data.norm_prior = 180.0  # s; n s of a recording have weight n/(n + prior) against the training fold; inf = none
    data.clip = 5.0  # normalised features are clipped to [-clip, clip]
    data.pool = 0.02  # s that are averaged
    data.stack = 0.04  # s of a model step: pooled frames side by side
    data.resident = "auto"  # memory (all model steps on the devices) | mapped (batch by batch) | auto (memory where a comparison's fit)
    data.loader = "memory"  # of mapped batches: memory | tf.data (the same, prepared in the background)
    data.bucket_growth = 1.25  # ratio of successive padded lengths: smaller wastes less, compiles more

    config.model = model = ml_collections.ConfigDict()
    model.name = "conv_transformer"  # file in encoders
    model.width = 64  # channels; own choice
    model.layers = 3  # of the transformer; own choice
    model.heads = 4  # own choice
    model.conv_layers = 3  # of the stem; own choice
    model.kernel = 5  # model steps of each of its convolutions; own choice

    config.objective = objective = ml_collections.ConfigDict()
    objective.name = "masked_timesteps"  # file in objectives
    objective.ratio = 0.15  # share of the steps that is masked; own choice
    objective.span = 0.2  # s masked in one piece; 0 = single model steps; own choice
    objective.loss = "l2"  # l1 | l2 | huber; own choice
    objective.statistics_weight = 0.0  # weight of telling level and movement of the crop; 0 = reconstruct only, as in the paper
    objective.decoder_width = 0  # 0 = all steps are encoded, as in the paper, and as this encoder must

    config.train = train = ml_collections.ConfigDict()
    train.unlabelled = True  # also the training recordings' stretches without labels
    train.share = 1.0  # of these segments, chosen at random: to ask how much data it takes
    train.steps = 2000
    train.batch_size = 64  # segments, over all devices
    train.accumulate = 1  # parts of a batch, one after another: less memory; each draws its own masks and dropout
    train.crop = 2.56  # s; longest piece of a segment, at a random place; 0 = whole segments
    train.dropout = 0.1  # in the encoder
    train.learning_rate = 1e-3  # peak
    train.warmup_steps = 100
    train.weight_decay = 0.01
    train.b2 = 0.98  # Adam's decay of the second moment
    train.clip_norm = 1.0  # largest global norm of the gradient
    train.eval_every = 250  # steps between evaluations on the validation fold, each with a checkpoint
    train.patience = 0  # evaluations without a better one before stopping; 0 = never stop early
    train.log_every = 50  # steps between logged training losses
    return config
