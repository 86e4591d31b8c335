"""Compares recipes of pretraining by a linear probe on the frozen encoder, scored on the validation fold alone.

  python -m jax_emossl.main --config=experiments/recipe.py:nemo --workdir=runs/recipe

The probe's regularisation is chosen on the same fold, alike for all recipes, so compare the values with one another only.
One validation speaker ranks recipes badly, so a corpus may bring folds for searches. On nEMO two of every rotation's five
training speakers join the validation fold: each of the nine speakers is then heard once by an encoder that does not know
the voice, and no rotation's test speakers are looked at. On RAVDESS each of the actors validates once, too, but they are those whom the
rotation of the same number tests: what is chosen by them is chosen in the knowledge of these.
"""

from collections.abc import Sequence

import ml_collections

RECIPES = (
    ("default", {}),
    ("reconstruction alone", {"pretrain.objective.statistics_weight": 0.0}),
    ("statistics x 3", {"pretrain.objective.statistics_weight": 3.0}),
    ("75 % x 0.4 s", {"pretrain.objective.ratio": 0.75, "pretrain.objective.span": 0.4}),
    ("L2", {"pretrain.objective.loss": "l2"}),
    ("prior 0", {"data.norm_prior": 0.0}),
    ("12.5 steps a second", {"data.stack": 0.08}),
    ("width 128", {"model.width": 128}),
    ("no dropout", {"pretrain.train.dropout": 0.0}),
)


def get_config(corpus: str = "", variants: Sequence[tuple[str, dict]] = RECIPES) -> ml_collections.ConfigDict:
    """The comparison of `variants`, each a name and the fields in which it differs."""
    config = ml_collections.ConfigDict()
    config.task = "compare"  # file in tasks
    config.seed = 0  # the first; of the pretraining alone
    config.fixed = ("compare.label_counts",)  # fields of this file that a corpus's settings leave as they are

    config.data = data = ml_collections.ConfigDict()
    data.corpus = corpus  # file in data/corpora; "" = demo (synthetic), unless features or prepared are given
    data.features = ""  # .csd of features, or several joined by commas, the first of which has the frames; "" = the corpus's own
    data.labels = ""  # .csd of labels; "" = the corpus's own
    data.folds = "searches"  # JSON files of recordings, joined by commas; rotations, searches or search (one) = the corpus's; "" = its own
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
    model.near = 0.08  # s; distance at which attention falls by e, in the pair of heads that looks least far (one back, one ahead)
    model.far = 0.32  # s; the same of the pair that looks farthest; others lie between
    model.dtype = "float32"  # float32 | bfloat16, of products; parameters, softmax, norms and sums stay float32
    model.remat = False  # compute each layer anew for its gradient: less memory, a third more time
    model.causal = False  # whether a step sees itself and those before it only, as future_prediction needs it

    config.pretrain = pretrain = ml_collections.ConfigDict()

    pretrain.objective = objective = ml_collections.ConfigDict()
    objective.name = "masked_timesteps"  # file in objectives
    objective.ratio = 0.85  # share of the steps that is masked; one span stays visible, so .76 in crops of 2.56 s
    objective.span = 0.8  # s masked in one piece; 0 = single model steps
    objective.loss = "l1"  # l1 | l2 | huber
    objective.statistics_weight = 1.0  # weight, in the end, of telling level and movement of the crop; 0 = reconstruct only
    objective.decoder_width = 0  # 0 = all steps are encoded; else the unmasked alone, and a layer of so many channels reconstructs the rest

    pretrain.train = train = ml_collections.ConfigDict()
    train.unlabelled = True  # also the training recordings' stretches without labels
    train.share = 1.0  # of these segments, chosen at random: to ask how much data it takes
    train.steps = 1000
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

    config.finetune = finetune = ml_collections.ConfigDict()

    finetune.objective = objective = ml_collections.ConfigDict()
    objective.name = "emotion"  # file in objectives
    objective.head = "auto"  # auto | intensity | category (auto: category where no segment carries two emotions)
    objective.loss = "ordinal"  # of the intensity head: ordinal (a distribution over levels) | l1 | l2 | huber
    objective.reads = (
        "encoder"  # encoder (every layer and the summary) | summary (alone); with +functionals those of the whole segment, too
    )
    objective.dropout = 0.3  # of what the head reads
    objective.standards_prior = 40.0  # segments; n others of a recording have weight n/(n + prior) against the fold; inf = none
    objective.selection = ""  # validation metric that chooses the step; "" = uar (category) or auroc (intensity)

    finetune.train = train = ml_collections.ConfigDict()
    train.probe_steps = 60  # probe-then-full: steps before the encoder is trained, too
    train.steps = 160
    train.epochs = 8.0  # passes over the labels: more of them stretch the training and all its steps; 0 = never
    train.most_steps = 1000  # to which it is stretched; 0 = no bound
    train.batch_size = 32  # segments, over all devices
    train.accumulate = 1  # parts of a batch, one after another: less memory; each draws its own masks and dropout
    train.crop = 8.0  # s; longest piece of a segment, at a random place, in training alone; 0 = whole segments
    train.dropout = 0.1  # in the encoder
    train.warmup_steps = 20  # and again when a probe ends
    train.weight_decay = 0.01
    train.b2 = 0.98  # Adam's decay of the second moment
    train.clip_norm = 1.0  # largest global norm of the gradient
    train.eval_every = 20  # steps between evaluations on the validation fold
    train.patience = 8  # evaluations without a better one before stopping; 0 = never stop early

    config.compare = compare = ml_collections.ConfigDict()
    compare.arms = ("frozen", "random", "functionals")  # names in arms.py
    compare.label_counts = (60, 150, 600)  # labelled training segments; below 1 a share of the fold, 0 = all
    compare.seeds = 3  # each with its own labels, initial head and batches
    compare.learning_rates = (1e-3, 3e-3)  # the grid of all trained arms; those alike on validation are averaged
    compare.regularisations = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # of linear read-outs, inverse (scikit-learn's C)
    compare.strategies = ("probe-then-full",)  # likewise: linear (read-out of the encoder as it is) | full | probe-then-full
    compare.pretrainings = 1  # encoders, each with its own seed; seeds take turns with them, and intervals resample them
    compare.validation = "fold"  # fold: all its labels choose steps and weigh settings | budget: about a quarter of the N labels do
    compare.pretrain_on = "own"  # own (the corpus) | others (compared beside it) | corpora, joined by +; or the workdir of a pretraining
    compare.fold = "valid"  # the fold that is reported: valid | test
    # (name, ((field, value), ...)): each is pretrained and compared
    compare.variants = tuple((name, tuple(fields.items())) for name, fields in variants)
    return config
