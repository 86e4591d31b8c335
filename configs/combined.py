"""Pretrain the encoder by several pretext tasks at once, each with its weight.

  python -m jax_emossl.main --config=configs/combined.py:nemo --config.objective.name=masked_timesteps+teacher --workdir=runs/combined

A corpus may bring settings of its own (SETTINGS in jax_emossl/data/corpora); a run says at its start which. Flags win over both.
"""

import ml_collections


def get_config(corpus: str = "") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "train"  # file in tasks
    config.seed = 0  # of parameters and batches

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
    model.name = "transformer"  # file in encoders
    model.width = 64  # channels
    model.layers = 3
    model.heads = 4
    model.causal = False  # whether a step sees itself and those before it only, as future_prediction needs it
    model.near = 0.08  # s; distance at which attention falls by e, in the pair of heads that looks least far (one back, one ahead)
    model.far = 0.32  # s; the same of the pair that looks farthest; others lie between
    model.dtype = "float32"  # float32 | bfloat16, of products; parameters, softmax, norms and sums stay float32
    model.remat = False  # compute each layer anew for its gradient: less memory, a third more time

    config.objective = objective = ml_collections.ConfigDict()
    objective.name = "masked_timesteps+agreement"  # files in objectives, joined by +; their fields stand in groups of these names

    objective.masked_timesteps = own = ml_collections.ConfigDict()
    own.weight = 1.0  # of its mean loss, where several are learned together
    own.ratio = 0.85  # share of the steps that is masked; one span stays visible, so .76 in crops of 2.56 s
    own.span = 0.8  # s masked in one piece; 0 = single model steps
    own.loss = "l1"  # l1 | l2 | huber
    own.statistics_weight = 1.0  # weight, in the end, of telling level and movement of the crop; 0 = reconstruct only
    own.decoder_width = 0  # 0 = all steps are encoded; else the unmasked alone, and a layer of so many channels reconstructs the rest

    objective.future_prediction = own = ml_collections.ConfigDict()
    own.weight = 1.0  # of its mean loss, where several are learned together
    own.ahead = 0.2  # s from the last step seen to the one predicted
    own.loss = "l1"  # l1 | l2 | huber
    own.codes = 0  # vectors of a quantised bottleneck before the prediction; 0 = none

    objective.alteration = own = ml_collections.ConfigDict()
    own.weight = 1.0  # of its mean loss, where several are learned together
    own.share = 0.15  # of the steps that is altered in time: set to 0, in a tenth of the rows replaced, in a tenth left
    own.span = 0.16  # s altered in one piece; 0 = single model steps
    own.group = 0.2  # largest share of the features, neighbours, that is hidden throughout a row
    own.noisy = 0.15  # share of the rows to which noise is added
    own.noise = 0.2  # its deviation; features have 1
    own.loss = "l1"  # l1 | l2 | huber

    objective.agreement = own = ml_collections.ConfigDict()
    own.weight = 0.1  # of its mean loss, where several are learned together
    own.ratio = 0.5  # share of the steps that one view masks and the other shows
    own.span = 0.4  # s masked in one piece; 0 = single model steps
    own.temperature = 0.1  # of the cosine similarities
    own.together = 8  # segments of one recording that come in one batch, where it has so many

    objective.cluster_identities = own = ml_collections.ConfigDict()
    own.weight = 0.1  # of its mean loss, where several are learned together
    own.ratio = 0.65  # share of the steps that is masked
    own.span = 0.4  # s masked in one piece; 0 = single model steps
    own.clusters = 32  # of every recording's model steps

    objective.teacher = own = ml_collections.ConfigDict()
    own.weight = 1.0  # of its mean loss, where several are learned together
    own.ratio = 0.65  # share of the steps that is masked
    own.span = 0.4  # s masked in one piece; 0 = single model steps
    own.layers = 2  # at the top, of which the teacher's mean is the target
    own.decay = 0.99  # what the teacher keeps of itself at a step, at the beginning
    own.final_decay = 0.999  # the same at the end, growing evenly
    own.loss = "l2"  # l1 | l2 | huber

    config.train = train = ml_collections.ConfigDict()
    train.unlabelled = True  # also the training recordings' stretches without labels
    train.share = 1.0  # of these segments, chosen at random: to ask how much data it takes
    train.steps = 2000
    train.batch_size = 64  # segments, over all devices
    train.accumulate = 1  # parts of a batch, one after another: less memory; each draws its own masks and dropout
    train.crop = 2.56  # s; longest piece of a segment, at a random place; 0 = whole segments
    train.dropout = 0.1  # in the encoder
    train.learning_rate = 2e-3  # peak
    train.warmup_steps = 100
    train.weight_decay = 0.01
    train.b2 = 0.98  # Adam's decay of the second moment
    train.clip_norm = 1.0  # largest global norm of the gradient
    train.eval_every = 250  # steps between evaluations on the validation fold, each with a checkpoint
    train.patience = 0  # evaluations without a better one before stopping; 0 = never stop early
    train.log_every = 50  # steps between logged training losses
    return config
