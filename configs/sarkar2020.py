"""Pretrain as Sarkar & Etemad 2020 (arXiv 2002.03898) do: recognise transformations of a signal.

  python -m jax_emossl.main --config=configs/sarkar2020.py:nemo --workdir=runs/sarkar2020
  python -m jax_emossl.main --config=configs/finetune.py:nemo --config.init_from=runs/sarkar2020 --config.train.strategy=probe

From the paper: the convolutional trunk, of which the global maximum is read; the original and six transformations with their strengths;
a binary head for each, of two hidden layers, its dropout and its weight; transfer frozen (train.strategy=probe) or fine-tuned.
Our own choices, which the paper's setting for other signals does not fix: everything else.

A corpus may bring settings of its own (SETTINGS in jax_emossl/data/corpora); a run says at its start which. Flags win over both.
"""

import ml_collections


def get_config(corpus: str = "") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "train"  # file in tasks
    config.seed = 0  # of parameters and batches
    config.fixed = ("model.width", "model.layers")  # fields of this file that a corpus's settings leave as they are

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
    model.name = "temporal_conv"  # file in encoders
    model.width = 32  # channels of the first block; each has twice those of the one before
    model.layers = 3  # blocks of two convolutions, pooling between
    model.kernel = 32  # model steps of the first block's convolutions; each has half those of the one before

    config.objective = objective = ml_collections.ConfigDict()
    objective.name = "transformation_recognition"  # file in objectives
    objective.transformations = ("original", "noise", "scaling", "negation", "inversion", "permutation", "time_warp")  # to recognise
    objective.weights = (0.195, 0.195, 0.195, 0.0125, 0.0125, 0.195, 0.195)  # of each one's loss
    objective.heads = "binary"  # binary: one per transformation | softmax: one over all, for each of the encoder's groups of features
    objective.reads = "summary"  # what heads read: encoder (every layer and the summary) | summary (alone, of an encoder that has one)
    objective.width = 128  # of each head's two hidden layers
    objective.dropout = 0.6  # in the heads
    objective.noise = 15.0  # dB, of the row's power over the noise's
    objective.scaling = 1.1  # factor
    objective.pieces = 20  # of a permutation
    objective.warp_pieces = 9  # of a time warp
    objective.warp = 1.05  # factor by which a random half of them is stretched, the others squeezed
    objective.crop = 0.7  # share of the row that is left and resized; not among these
    objective.magnitude = 0.2  # deviation of the factors of a magnitude warp; not among these

    config.train = train = ml_collections.ConfigDict()
    train.unlabelled = True  # also the training recordings' stretches without labels
    train.share = 1.0  # of these segments, chosen at random: to ask how much data it takes
    train.steps = 2000
    train.batch_size = 32  # segments, each under every transformation, over all devices
    train.accumulate = 1  # parts of a batch, one after another: less memory; each draws its own masks and dropout
    train.crop = 2.56  # s; longest piece of a segment, at a random place; 0 = whole segments
    train.dropout = 0.0  # in the encoder
    train.learning_rate = 1e-3  # peak
    train.warmup_steps = 100
    train.weight_decay = 0.01
    train.b2 = 0.98  # Adam's decay of the second moment
    train.clip_norm = 1.0  # largest global norm of the gradient
    train.eval_every = 250  # steps between evaluations on the validation fold, each with a checkpoint
    train.patience = 0  # evaluations without a better one before stopping; 0 = never stop early
    train.log_every = 50  # steps between logged training losses
    return config
