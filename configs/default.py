"""Every field there is, with its meaning and default; the other configs say what differs."""

import ml_collections


def get_config(corpus: str = "demo") -> ml_collections.ConfigDict:
    """`corpus` is demo (synthetic), nemo, mosei, or any name where the data fields are given."""
    config = ml_collections.ConfigDict()
    config.task = "train"  # train | evaluate | compare
    config.seed = 0  # of parameters, batches and the choice of labels
    config.num_labels = 0  # labelled training segments; 0 = all
    config.init_from = ""  # workdir of the run whose encoder to start from; "" = from scratch

    config.data = data = ml_collections.ConfigDict()
    data.corpus = corpus
    data.features = ""  # .csd of features; "" = the named corpus's own
    data.labels = ""  # .csd of labels; "" = the named corpus's own
    data.folds = ""  # JSON of recording ids per fold, or cmu_mosei; "" = the named corpus's own
    data.words = ""  # .csd of word intervals: average the frames of each word; "" = frames
    data.label_names = ""  # comma-separated names of the label columns, where the file has none
    data.prepared = ""  # folder written by jax_emossl.prepare, instead of the .csd files
    data.norm_prior = 180.0  # s; a recording of n s has weight n/(n + prior) against the training fold
    data.clip = 5.0  # normalised features are clipped to [-clip, clip]
    data.pool = 2  # consecutive frames averaged: 100 Hz -> 50 Hz
    data.stack = 2  # consecutive pooled frames stacked: 50 Hz -> 25 model steps a second
    data.loader = "memory"  # memory | tf.data (same batches, prepared in the background)
    data.bucket_growth = 1.25  # ratio of successive padded lengths: smaller wastes less, compiles more

    config.model = model = ml_collections.ConfigDict()
    model.width = 64
    model.layers = 3
    model.heads = 4

    config.objective = ml_collections.ConfigDict()

    config.train = train = ml_collections.ConfigDict()
    train.steps = 400
    train.batch_size = 32  # segments, over all devices
    train.unlabelled = False  # train also on the training recordings' stretches without labels
    train.share = 1.0  # of the training segments, chosen at random: to ask how much unlabelled data it takes
    train.dropout = 0.1  # in the encoder
    train.crop = 0  # longest piece of a segment, in model steps; 0 = whole segments
    train.strategy = "full"  # full | frozen | probe-then-full
    train.learning_rate = 1e-3  # peak
    train.encoder_factor = 1.0  # the encoder's learning rate over the head's
    train.probe_steps = 0  # probe-then-full: steps before the encoder is trained
    train.warmup_steps = 20
    train.weight_decay = 0.01
    train.b2 = 0.98  # Adam's decay of the second moment
    train.clip_norm = 1.0  # largest global norm of the gradient
    train.eval_every = 25  # steps between evaluations on the validation fold, each with a checkpoint
    train.patience = 8  # evaluations without a better one before stopping; 0 = never stop early
    train.log_every = 25  # steps between logged training losses
    return config
