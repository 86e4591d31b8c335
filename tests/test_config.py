import importlib
import json
import math

import ml_collections
import pytest

from jax_emossl import config as fields
from jax_emossl.data import corpora
from jax_emossl.data.corpora import demo
from jax_emossl.errors import UserError


def get(name, changes=(), corpus=""):
    """A config with dotted fields replaced; these count as given."""
    module = name if "." in name else f"configs.{name}"
    config = importlib.import_module(module).get_config(corpus)
    if "init_from" in config:
        config.init_from = "runs/pretrain"
    config.update_from_flattened_dict(dict(changes))
    return config


def resolved(name, changes=(), corpus=""):
    config = get(name, changes, corpus)
    fields.resolve(config, dict(changes))
    return config


# What a corpus sets


def test_the_settings_of_a_corpus_are_applied_wherever_its_name_comes_from():
    by_name, by_field = resolved("quickstart", corpus="demo"), resolved("quickstart", {"data.corpus": "demo"})
    assert by_name == by_field == resolved("quickstart")
    flat = fields.flat(by_name)
    assert {name: flat[name] for name in demo.SETTINGS} == demo.SETTINGS
    assert resolved("finetune", {"data.corpus": "nemo"}) == resolved("finetune", corpus="nemo")


def test_a_run_alone_takes_the_settings_of_its_own_group():
    pretrain, finetune = resolved("pretrain"), resolved("finetune")
    assert pretrain.model == finetune.model and pretrain.model.width == 32
    assert (pretrain.train.steps, pretrain.objective.span, pretrain.train.crop) == (600, 0.32, 3.84)
    assert (finetune.train.steps, finetune.train.probe_steps) == (120, 40)
    assert "probe_steps" not in pretrain.train and "pretrain" not in finetune


def test_what_the_user_gives_and_what_the_config_keeps_stands_against_the_corpus():
    config = resolved("quickstart", {"model.width": 64, "pretrain.train.steps": 2000})  # the file's own values, too
    assert (config.model.width, config.pretrain.train.steps, config.model.layers) == (64, 2000, 2)
    config = resolved("paper")
    assert (config.pretrain.objective.ratio, config.pretrain.objective.span) == (0.15, 0.0)
    assert resolved("experiments.label_fraction").finetune.train.steps == 60


def test_a_run_that_starts_from_another_has_its_encoder_and_flags_win(tmp_path):
    encoder = {"name": "temporal_conv", "width": 32, "layers": 3, "kernel": 32}
    (tmp_path / "card.json").write_text(json.dumps({"model": encoder}))
    for name, field in (("finetune", "init_from"), ("quickstart", "compare.pretrain_on")):
        config = get(name, {field: str(tmp_path)}, "demo")
        (line,) = fields.resolve(config)
        assert config.model.to_dict() == encoder
        assert f"temporal_conv of 3 layers, width 32, as in {tmp_path};" in line and "model.width" not in line
        fields.check(config)
    config = resolved("finetune", {"init_from": str(tmp_path), "model.width": 64})
    assert config.model.to_dict() == encoder | {"width": 64}


@pytest.mark.parametrize("card", ["", "[]", "{}", '{"model": 3}', '{"model": {"width": 8}}'])
def test_a_card_that_cannot_be_read_is_left_to_whoever_starts_from_it(card, tmp_path):
    (tmp_path / "card.json").write_text(card)
    assert resolved("finetune", {"init_from": str(tmp_path)}, "nemo").model == get("finetune").model


FILES = {"data.features": "F.csd", "data.labels": "L.csd", "data.folds": "folds.json"}


@pytest.mark.parametrize("source", [FILES, {"data.prepared": "prepared/mine"}], ids=["features", "prepared"])
@pytest.mark.parametrize("name", ["quickstart", "pretrain", "scratch"])
def test_files_without_a_name_get_the_files_own_defaults(name, source):
    config, before = resolved(name, source), get(name, source)
    assert config == before and config.data.corpus == "" and config.model.width == 64
    fields.check(config, source)


def test_files_with_a_name_get_what_the_corpus_of_that_name_sets():
    assert resolved("quickstart", FILES | {"data.corpus": "demo"}).model.width == 32
    assert resolved("quickstart", {"data.prepared": "prepared/mosei"}, "mosei").compare.label_counts[0] == 0.002
    assert resolved("quickstart", FILES, "klingon").model.width == 64


def test_a_prepared_corpus_takes_the_folds_of_an_experiment_from_no_one():
    assert resolved("experiments.label_fraction", {"data.prepared": "prepared/nemo"}, "nemo").data.folds == ""
    assert resolved("experiments.label_fraction", corpus="nemo").data.folds == "rotations"


def test_what_was_chosen_is_said_in_one_line():
    (line,) = fields.resolve(get("quickstart"))
    assert line.startswith("corpus demo; transformer of 2 layers, width 32; 600 steps of pretraining, 120 steps of fine-tuning; set by")
    assert "model.width=32" in line and "\n" not in line
    (line,) = fields.resolve(get("pretrain", FILES), FILES)
    assert line == "corpus F; transformer of 3 layers, width 64; 2000 steps; set by the corpus: nothing"


def test_a_training_that_the_user_makes_shorter_than_its_probe_probes_half_of_it():
    config = get("scratch", {"train.steps": 30})
    assert fields.resolve(config, ["train.steps"])[1:] == ["train.probe_steps is 15 instead of 40, half of the 30 steps"]
    fields.check(config)
    assert resolved("scratch", {"train.steps": 60}).train.probe_steps == 40
    assert resolved("scratch", {"train.steps": 30, "train.strategy": "full"}).train.probe_steps == 40
    assert resolved("experiments.recipe", {"finetune.train.steps": 30}).finetune.train.probe_steps == 15


def test_an_evaluation_takes_all_from_its_run():
    config = get("evaluate", corpus="demo")
    assert fields.resolve(config) == [] and config == get("evaluate", corpus="demo")


def test_a_new_corpus_brings_its_settings_in_its_one_file(tmp_path, monkeypatch):
    (tmp_path / "klingon.py").write_text("SETTINGS = {'model.width': 48, 'finetune.train.steps': 7}")
    monkeypatch.setattr(corpora, "__path__", [*corpora.__path__, str(tmp_path)])
    config = resolved("scratch", corpus="klingon")
    assert (config.model.width, config.train.steps) == (48, 7)


# Checks

BAD = [
    ("scratch", {"model.width": 18}, "model.width is 18, but must be a multiple of 8, twice the number of its heads"),
    (
        "pretrain",
        {"objective.decoder_width": 18},
        "objective.decoder_width is 18, but must be a multiple of 4, twice the number of its heads",
    ),
    ("scratch", {"model.layers": 0}, "model.layers is 0, but must lie between 1 and inf"),
    ("scratch", {"model.heads": 0}, "model.heads is 0"),
    ("scratch", {"model.name": "oracle"}, "model.name is 'oracle': choose one of conv_transformer, "),
    ("scratch", {"model.name": "temporal_conv"}, "model.name is 'temporal_conv', but this config lacks temporal_conv.kernel: take one"),
    ("sarkar2020", {"model.name": "transformer"}, "model.name is 'transformer', but this config lacks transformer.near: take one"),
    ("sarkar2020", {"model.kernel": 0}, "model.kernel is 0, but must lie between 1 and inf"),
    ("sarkar2020", {"objective.transformations": ("noise", "echo")}, "objective.transformations is 'echo': choose one of original, noise"),
    ("wu2023", {"objective.crop": 0.0}, "objective.crop is 0.0, but must lie between 0.01 and 1"),
    ("scratch", {"objective.reads": "minds"}, "objective.reads is 'minds': choose one of encoder, encoder\\+functionals, summary"),
    ("scratch", {"data.pool": -0.01}, "data.pool is -0.01"),
    ("scratch", {"data.stack": math.inf}, "data.stack is inf"),
    ("scratch", {"data.norm_prior": -1.0}, "data.norm_prior is -1.0"),
    ("scratch", {"data.norm_prior": math.nan}, "data.norm_prior is nan"),
    ("scratch", {"data.clip": 0.0}, "data.clip is 0.0"),
    ("scratch", {"data.loader": "disk"}, "data.loader is 'disk': choose one of memory, tf.data"),
    ("scratch", {"data.bucket_growth": 1.0}, "data.bucket_growth is 1.0, but must lie between 1.01 and 100"),
    ("scratch", {"seed": -1}, "seed is -1"),
    ("scratch", {"num_labels": -1}, "num_labels is -1"),
    ("scratch", {"objective.name": "telepathy"}, "objective.name is 'telepathy': choose one of agreement, alteration"),
    ("scratch", {"objective.name": "masked_timesteps"}, "objective.name is 'masked_timesteps', but this config lacks masked_timesteps"),
    ("pretrain", {"objective.name": "emotion"}, "objective.name is 'emotion', but this config lacks emotion.reads"),
    ("pretrain", {"objective.name": "masked_timesteps+agreement"}, "'masked_timesteps.agreement', but this config lacks masked_timesteps"),
    ("pretrain", {"objective.name": "combined"}, "objective.name is 'combined': choose one of agreement, alteration"),
    ("combined", {"objective.name": "agreement+telepathy"}, "objective.name is 'telepathy': choose one of agreement, alteration"),
    ("combined", {"objective.name": "agreement+"}, "objective.name is '': choose one of agreement, alteration"),
    ("combined", {"objective.name": "teacher+teacher"}, "'teacher.teacher', which names teacher twice: name it once"),
    ("combined", {"objective.name": "agreement+emotion"}, "'agreement.emotion', but this config lacks emotion.reads"),
    ("combined", {"train.accumulate": 2}, "train.accumulate is 2, but weights compare means of whole batches"),
    ("agreement", {"train.batch_size": 4, "train.accumulate": 4}, "train.batch_size is 4 in 4 parts, but agreement compares segments"),
    ("combined", {"objective.agreement.weight": 0.0}, "objective.agreement.weight is 0.0, but must lie between 1e-06"),
    ("combined", {"objective.teacher.decay": 1.5}, "objective.teacher.decay is 1.5, but must lie between 0 and 1"),
    ("agreement", {"objective.together": 1}, "objective.together is 1, but must lie between 2"),
    ("future_prediction", {"objective.ahead": 0.0}, "objective.ahead is 0.0, but must lie between 0.001"),
    ("cluster_identities", {"objective.clusters": 1}, "objective.clusters is 1, but must lie between 2"),
    ("alteration", {"objective.group": 1.5}, "objective.group is 1.5"),
    ("scratch", {"objective.head": "brain"}, "objective.head is 'brain': choose one of auto, intensity, category"),
    ("scratch", {"objective.loss": "l3"}, "objective.loss is 'l3': choose one of ordinal, l1, l2, huber"),
    ("scratch", {"objective.dropout": 1.0}, "objective.dropout is 1.0"),
    ("pretrain", {"objective.loss": "l3"}, "objective.loss is 'l3': choose one of l1, l2, huber"),
    ("pretrain", {"objective.ratio": 0.0}, "objective.ratio is 0.0"),
    ("pretrain", {"objective.ratio": 1.0}, "objective.ratio is 1.0"),
    ("pretrain", {"objective.span": -0.1}, "objective.span is -0.1"),
    ("pretrain", {"objective.statistics_weight": math.inf}, "objective.statistics_weight is inf"),
    ("pretrain", {"train.share": 1.5}, "train.share is 1.5, but must lie between 0 and 1"),
    ("scratch", {"train.strategy": "frozen"}, "train.strategy is 'frozen': choose one of full, probe, probe-then-full"),
    ("scratch", {"train.probe_steps": -1}, "train.probe_steps is -1"),
    ("scratch", {"train.steps": 0}, "train.steps is 0"),
    ("scratch", {"train.batch_size": 0}, "train.batch_size is 0"),
    ("scratch", {"train.crop": -1.0}, "train.crop is -1.0"),
    ("scratch", {"train.crop": math.inf}, "train.crop is inf"),
    ("scratch", {"train.steps": 40, "train.probe_steps": 40}, "train.probe_steps is 40 of 40 steps, so that the encoder would never be"),
    ("scratch", {"train.dropout": 1.0}, "train.dropout is 1.0"),
    ("scratch", {"train.learning_rate": -1.0}, "train.learning_rate is -1.0"),
    ("scratch", {"train.warmup_steps": -1}, "train.warmup_steps is -1"),
    ("scratch", {"train.weight_decay": -1.0}, "train.weight_decay is -1.0"),
    ("scratch", {"train.b2": 1.5}, "train.b2 is 1.5"),
    ("scratch", {"train.clip_norm": 0.0}, "train.clip_norm is 0.0"),
    ("scratch", {"train.eval_every": 0}, "train.eval_every is 0"),
    ("scratch", {"train.patience": -1}, "train.patience is -1"),
    ("scratch", {"train.log_every": 0}, "train.log_every is 0"),
    ("evaluate", {"fold": "dev"}, "fold is 'dev': choose one of train, valid, test"),
    ("evaluate", {"init_from": ""}, "init_from is not given: name the workdir of a finished run with --config.init_from=DIR"),
    ("evaluate", {"init_from": "REQUIRED"}, "init_from is not given: name the workdir of a finished run"),
    ("finetune", {"init_from": "REQUIRED"}, "init_from is not given: name the workdir of a pretraining with --config.init_from=DIR"),
    ("quickstart", {"task": "sing"}, "task is 'sing': choose one of compare, evaluate, train"),
    ("quickstart", {"task": "train"}, "task is 'train', but this config lacks its fields"),
    ("scratch", {"task": "compare"}, "task is 'compare', but this config lacks its fields"),
    ("quickstart", {"pretrain.train.steps": 0}, "pretrain.train.steps is 0, but must lie between 1"),
    ("quickstart", {"finetune.objective.loss": "l3"}, "finetune.objective.loss is 'l3'"),
    ("quickstart", {"compare.arms": ("crystal ball",)}, "compare.arms is 'crystal ball': choose one of pretrained, frozen"),
    ("quickstart", {"compare.arms": ("constant",)}, "compare.arms is 'constant': choose one of pretrained"),
    ("quickstart", {"compare.arms": ()}, "compare.arms is empty: name at least one"),
    ("quickstart", {"compare.variants": ()}, "compare.variants is empty"),
    ("quickstart", {"compare.seeds": 0}, "compare.seeds is 0"),
    ("quickstart", {"compare.pretrainings": 9}, "compare.pretrainings is 9, but 2 seeds take turns with them"),
    ("quickstart", {"compare.arms": ("functionals", "functionals")}, "compare.arms names functionals twice"),
    ("quickstart", {"compare.learning_rates": (1e-3, 1e-3)}, "compare.learning_rates names 0.001 twice"),
    ("quickstart", {"compare.label_counts": (math.inf,)}, "compare.label_counts is inf"),
    (
        "quickstart",
        {"compare.strategies": ("probe-then-full",), "finetune.train.probe_steps": 500, "finetune.train.steps": 400},
        "finetune.train.probe_steps is 500 of 400 steps",
    ),
    (
        "quickstart",
        {"compare.variants": (("a", ()), ("b", (("compare.fold", "valid"),)))},
        "compare.variants set compare.fold to different folds, of which a report has one",
    ),
    ("quickstart", {"compare.label_counts": (30, -1)}, "compare.label_counts is -1"),
    ("quickstart", {"compare.label_counts": (30.5,)}, "compare.label_counts has 30.5: give counts, shares of the fold below 1, or 0"),
    ("quickstart", {"compare.label_counts": ("many",)}, "compare.label_counts is many"),
    ("quickstart", {"compare.learning_rates": (-1.0,)}, "compare.learning_rates is -1.0"),
    ("quickstart", {"compare.strategies": ("frozen",)}, "compare.strategies is 'frozen': choose one of linear, full, probe-then-full"),
    ("quickstart", {"compare.fold": "train"}, "compare.fold is 'train': choose one of valid, test"),
    ("quickstart", {"compare.variants": (("a/b", ()),)}, "a folder is named 'a/b'"),
    ("quickstart", {"compare.variants": (("a", ()), ("a", ()))}, "a folder is named 'a'; .* each name once"),
    ("quickstart", {"compare.variants": ("ab", "c")}, "must be pairs"),
    ("quickstart", {"compare.variants": (1,)}, "must be pairs"),
    ("quickstart", {"compare.variants": (("a", 5),)}, "must be pairs"),
    ("quickstart", {"compare.variants": (("a", (5,)),)}, "must be pairs"),
    ("quickstart", {"compare.variants": (("..", ()),)}, "a folder is named '..'"),
    ("quickstart", {"compare.variants": (("a", (("model.widht", 8),)),)}, r"'a' sets model.widht, .* \(did you mean \"width\"\?\)"),
    ("quickstart", {"compare.variants": (("a", (("model", 8),)),)}, "'a' sets model, which is no field or not of this type"),
    ("quickstart", {"compare.variants": (("a", (("model.width", "wide"),)),)}, "'a' sets model.width, which is no field or not of this"),
    ("quickstart", {"compare.variants": (("a", (("model.width", 7),)),)}, "model.width is 7"),
    (
        "scratch",
        {"data.corpus": "klingon"},
        "'klingon' is no known corpus: choose one of demo, mosei, nemo, ravdess, or give data.features",
    ),
    ("scratch", {"data.features": "F.csd"}, "data.features is given without data.labels and data.folds"),
    ("scratch", FILES | {"data.folds": ""}, "data.features is given without data.folds"),
    ("experiments.label_fraction", FILES | {"data.folds": "rotations"}, "data.features is given without data.folds"),
    ("scratch", {"data.folds": "a.json,b.json"}, "data.folds is 'a.json,b.json', but a run alone takes one file of folds"),
    ("scratch", {"data.folds": "rotations"}, "data.folds is 'rotations', but a run alone takes one file of folds"),
    *(
        ("quickstart", {"data.prepared": "prepared/mine", f"data.{field}": value}, f"data.{field} is given beside data.prepared")
        for field, value in (
            ("features", "F"),
            ("labels", "L"),
            ("words", "W"),
            ("label_names", "a,b"),
            ("folds", "a.json,b.json"),
            ("speakers", "S.json"),
        )
    ),
    ("quickstart", {"data.prepared": "prepared/nemo", "data.folds": "rotations"}, "data.folds is given beside data.prepared"),
    ("evaluate", {"data.prepared": "prepared/mine", "data.features": "F"}, "data.features is given beside data.prepared"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BAD)
def test_what_makes_no_sense_is_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        fields.check(resolved(name, changes), changes)


def test_a_group_of_fields_cannot_be_given_at_once():
    with pytest.raises(UserError, match="train is a group of fields: set them one by one, as in --config.train.FIELD=VALUE"):
        fields.check(get("scratch"), {"train": {"steps": 3}})


def test_every_number_and_every_choice_of_every_config_is_checked():
    free = {"data.corpus", "data.features", "data.labels", "data.folds", "data.speakers", "data.words", "data.label_names", "data.prepared"}
    free |= {"init_from", "emotion.selection", "transformer.remat", "transformer.causal", "train.unlabelled", "fixed"}
    free |= {"compare.variants", "compare.pretrain_on"}
    # Of the other encoder in experiments.objectives, checked in the variant that takes it.
    free |= {f"transformer.{field}" for field in ("groups", "conv_layers", "channels", "kernel")}
    pretext = ("pretrain", "future_prediction", "alteration", "agreement", "cluster_identities", "teacher", "combined")
    for name in (*pretext, "scratch", "evaluate", "quickstart", "experiments.objectives"):
        flat = fields.flat(get(name))
        assert {fields._key(flat, field) for field in flat} - free <= set(fields._ALLOWED)


def test_a_part_without_its_weight_is_refused():
    config = get("combined")
    del config.objective.agreement.weight
    with pytest.raises(UserError, match="but this config lacks objective.agreement.weight: take one that is made for it"):
        fields.check(config)
    config.objective.name = "agreement"  # which alone needs none
    fields.check(config)


def test_what_a_corpus_sets_of_an_objective_goes_for_every_one_that_is_listed():
    config = resolved("combined", {"objective.teacher.ratio": 0.3}, corpus="demo")
    assert (config.objective.masked_timesteps.ratio, config.objective.teacher.ratio) == (0.5, 0.3)
    assert {config.objective[name].span for name in ("masked_timesteps", "agreement", "teacher", "cluster_identities")} == {0.32}


UNREAD = [
    ("combined", {"objective.teacher.decay": 0.9}, ["objective.teacher.decay", "objective.name is masked_timesteps+agreement"]),
    ("combined", {"objective.name": "teacher", "objective.teacher.weight": 2.0}, ["objective.teacher.weight", "objective.name is teacher"]),
    ("scratch", {"train.strategy": "full", "train.probe_steps": 9}, ["train.probe_steps", "train.strategy is full"]),
    ("scratch", {"train.strategy": "probe", "train.probe_steps": 9}, ["train.probe_steps", "train.strategy is probe"]),
    ("scratch", {"objective.head": "category", "objective.loss": "l1"}, ["objective.loss", "objective.head is category"]),
    (
        "quickstart",
        {"compare.regularisations": (0.1,)},
        ["compare.regularisations", "nothing in compare.arms and compare.strategies is linear"],
    ),
    ("paper", {"finetune.train.probe_steps": 9}, ["finetune.train.probe_steps", "compare.strategies lacks probe-then-full"]),
    ("quickstart", {"compare.strategies": ("linear",), "compare.learning_rates": (1.0,)}, ["compare.learning_rates", "is linear alone"]),
    ("experiments.recipe", {"compare.strategies": ("full",)}, ["compare.strategies", "no arm in compare.arms is trained"]),
    ("experiments.recipe", {"finetune.train.steps": 9}, ["finetune.train.steps", "no arm in compare.arms is trained"]),
    ("experiments.recipe", {"finetune.objective.dropout": 0.1}, ["finetune.objective.dropout", "no arm in compare.arms is trained"]),
    ("quickstart", {"compare.arms": ("scratch",), "pretrain.train.steps": 9}, ["pretrain.train.steps", "no arm in compare.arms is pre"]),
    ("quickstart", {"compare.arms": ("scratch",), "compare.pretrain_on": "own"}, ["compare.pretrain_on", "no arm in compare.arms is pre"]),
    ("quickstart", {"data.resident": "memory", "data.loader": "memory"}, ["data.loader", "data.resident is memory"]),
    ("scratch", {"train.epochs": 0.0, "train.most_steps": 90}, ["train.most_steps", "train.epochs is 0"]),
    ("scratch", {"data.enrolment": 4}, ["data.enrolment", "data.normalise_by is recording"]),
    (
        "scratch",
        {"data.normalise_by": "none", "objective.standards_prior": 3.0},
        ["objective.standards_prior", "data.normalise_by is none"],
    ),
]


@pytest.mark.parametrize(("name", "changes", "words"), UNREAD)
def test_what_is_given_and_read_by_nothing_is_told(name, changes, words, capsys):
    fields.check(resolved(name, changes), changes)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"notice: {words[0]} is given, but nothing reads it: ") and words[1] in line


def test_what_is_read_or_was_not_given_is_not_told(capsys):
    given = {"train.probe_steps": 9}
    fields.check(resolved("scratch", given), given)
    fields.check(resolved("scratch", {"train.strategy": "full"}), {"train.strategy"})
    varied = {"compare.variants": (("a", ()), ("b", (("compare.strategies", ("full",)),))), "compare.strategies": ("linear",)}
    fields.check(resolved("quickstart", varied | {"compare.learning_rates": (1e-4,)}), {"compare.learning_rates"})  # b reads it
    assert capsys.readouterr().err == ""


# The trainings of a comparison


def test_a_part_stands_alone_as_its_config_does():
    comparison = resolved("quickstart", corpus="nemo")
    pretrain, finetune = fields.part(comparison, "pretrain"), fields.part(comparison, "finetune", seed=3, init_from="x")
    assert pretrain == resolved("pretrain", corpus="nemo")
    alone = fields.flat(resolved("finetune", corpus="nemo"))
    missing = {"train.strategy", "train.learning_rate", "train.log_every"}
    assert set(fields.flat(finetune)) == set(alone) - missing
    assert (finetune.seed, finetune.num_labels, finetune.init_from, finetune.task) == (3, 0, "x", "train")
    finetune.train.update(strategy="full", learning_rate=1e-3)  # not locked, and the comparison stays as it is
    finetune.model.width = 8
    assert "strategy" not in comparison.finetune.train and comparison.model.width == 64


def test_a_part_of_a_locked_comparison_can_be_completed():
    comparison = get("quickstart")
    comparison.lock()
    fields.part(comparison, "finetune").train.strategy = "full"
    assert fields.varied(comparison, "a", [("model.width", 8)], {"folds": "x.json"}).data.folds == "x.json"


def test_a_variant_sets_its_fields_and_leaves_the_comparison_alone():
    comparison = get("quickstart")
    varied = fields.varied(comparison, "a", (("data.norm_prior", math.inf), ("pretrain.train.steps", 7)), {"folds": "folds.json"})
    assert (varied.data.norm_prior, varied.pretrain.train.steps, varied.data.folds) == (math.inf, 7, "folds.json")
    assert (comparison.data.norm_prior, comparison.pretrain.train.steps, comparison.data.folds) == (180, 2000, "")


@pytest.mark.parametrize(
    ("seeds", "counts", "expected"),
    [
        (5, (30, 60, 600, 0), (3, (60, 600))),
        (1, (30, 60, 600, 0), (1, (60, 600))),  # a comparison of one seed has no variant of three
        (2, (120, 60), (2, (60,))),
        (2, (120,), (2, (120,))),  # none in common: those of the comparison
    ],
)
def test_a_variant_has_no_more_seeds_than_the_comparison_and_only_its_label_counts(seeds, counts, expected):
    comparison = get("quickstart", {"compare.seeds": seeds, "compare.label_counts": counts})
    varied = fields.varied(comparison, "a", (("compare.label_counts", (60, 600)), ("compare.seeds", 3)), {})
    assert (varied.compare.seeds, varied.compare.label_counts) == expected


def test_flat_names_every_field_by_its_dots():
    assert fields.flat(ml_collections.ConfigDict({"a": 1, "b": {"c": {"d": ()}, "e": "f"}})) == {"a": 1, "b.c.d": (), "b.e": "f"}


@pytest.mark.parametrize(
    ("labels", "steps", "every"), [(30, 60, 20), (240, 60, 20), (600, 150, 50), (817, 204, 68), (2608, 652, 218), (16331, 1000, 334)]
)
def test_a_training_on_more_labels_takes_longer_and_is_evaluated_as_often(labels, steps, every):
    train = ml_collections.ConfigDict(
        {"steps": 60, "epochs": 8.0, "batch_size": 32, "most_steps": 1000, "probe_steps": 30, "warmup_steps": 10, "eval_every": 20}
    )
    made = fields.stretched(train, labels)
    assert (made.steps, made.eval_every) == (steps, every)
    assert math.ceil(made.steps / made.eval_every) == 3
    assert made.warmup_steps == round(steps / 6) and made.probe_steps == pytest.approx(steps / 2, abs=1)
