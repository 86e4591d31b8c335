import importlib
import json
import pkgutil
from pathlib import Path

import pytest
from conftest import TINY

import configs
import experiments
from jax_emossl import config as fields
from jax_emossl import workdir
from jax_emossl.data import corpora
from jax_emossl.errors import UserError

CONFIGS = [f"configs.{module.name}" for module in pkgutil.iter_modules(configs.__path__)]
EXPERIMENTS = [f"experiments.{m.name}" for m in pkgutil.iter_modules(experiments.__path__) if not m.name.startswith("bench")]


def get(name, corpus=""):
    return importlib.import_module(name if "." in name else f"configs.{name}").get_config(corpus)


@pytest.fixture(autouse=True)
def _corpora_need_not_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("EMOSSL_DATA", str(tmp_path))


COMPARISONS = [name for name in CONFIGS + EXPERIMENTS if get(name).task == "compare"]


@pytest.mark.parametrize("name", CONFIGS + EXPERIMENTS)
@pytest.mark.parametrize("corpus", ["", "demo", "nemo", "ravdess", "mosei"])
def test_every_config_is_sound_on_every_corpus_and_names_no_files(name, corpus):
    config = get(name, corpus)
    assert config.data.corpus == corpus
    assert all(config.data[field] == "" for field in ("features", "labels", "speakers", "words", "prepared"))
    if "init_from" in config:
        config.init_from = config.init_from and "runs/pretrain"
    fields.resolve(config)
    json.dumps(workdir.plain(config), allow_nan=False)
    if name != "experiments.transfer":  # needs several corpora, see below
        fields.check(config)


def test_transfer_needs_several_corpora():
    one, two = (get("experiments.transfer", corpus) for corpus in ("nemo", "nemo+ravdess"))
    fields.check(two)
    with pytest.raises(UserError, match="compare.pretrain_on names others, but there is one corpus"):
        fields.check(one)


@pytest.mark.parametrize("name", [name for name in CONFIGS + EXPERIMENTS if name != "configs.evaluate"])
def test_the_corpus_is_the_demo_unless_named(name):
    unnamed, named = get(name), get(name, "demo")
    fields.resolve(unnamed)
    fields.resolve(named)
    assert unnamed.data.corpus == "demo" and unnamed == named


def test_scratch_is_a_fine_tuning_from_nothing_and_differs_in_nothing_else():
    finetune, scratch = fields.flat(get("finetune", "nemo")), fields.flat(get("scratch", "nemo"))
    assert (finetune.pop("init_from"), scratch.pop("init_from")) == ("REQUIRED", "")
    assert finetune == scratch


def test_pretraining_and_fine_tuning_share_the_backbone_and_the_frontend():
    for corpus in ("nemo", "demo"):
        runs = [get(name, corpus) for name in ("pretrain", "finetune", "quickstart")]
        for run in runs:
            fields.resolve(run)
        assert runs[0].model == runs[1].model == runs[2].model
        assert runs[0].data == runs[1].data == runs[2].data


def test_all_comparisons_have_the_same_fields():
    assert len(COMPARISONS) == 16
    own = {name: set(fields.flat(get(name))) for name in COMPARISONS}
    listed = {field for field in own["experiments.objectives"] if field.startswith("pretrain.objective.")}  # of all objectives
    alone = {field for field in own["configs.quickstart"] if field.startswith("pretrain.objective.")}
    of_the_other_encoder = {f"model.{field}" for field in ("groups", "conv_layers", "channels", "kernel")}
    assert own["experiments.objectives"] - listed | alone == own["configs.quickstart"] | of_the_other_encoder
    del own["experiments.objectives"]
    assert len({tuple(sorted(names)) for names in own.values()}) == 1


def test_a_comparison_has_the_fields_of_its_trainings_less_what_its_grid_says():
    comparison = get("quickstart")
    for group, name, less in (("pretrain", "pretrain", set()), ("finetune", "scratch", {"strategy", "learning_rate", "log_every"})):
        alone = get(name)
        assert set(comparison[group].train) == set(alone.train) - less
        assert comparison[group].objective == alone.objective
        assert comparison.data == alone.data and comparison.model == alone.model


def test_the_quickstart_compares_the_same_label_counts_on_any_corpus_that_asks_for_no_others():
    for corpus in ("demo", "nemo", "ravdess"):
        config = get("quickstart", corpus)
        fields.resolve(config)
        assert config.compare.label_counts == (30, 120, 0)


@pytest.mark.parametrize("name", ["future_prediction", "alteration", "agreement", "cluster_identities", "teacher", "combined"])
def test_pretrainings_differ_in_their_objective_and_in_what_it_needs(name):
    own, masked = get(name, "nemo"), get("pretrain", "nemo")
    assert own.data == masked.data and own.train == masked.train
    assert own.model.causal == (name == "future_prediction")
    with own.unlocked():
        own.model.causal = masked.model.causal
    assert own.model == masked.model


def test_objectives_are_compared_with_the_fields_of_their_own_configs():
    config = get("experiments.objectives")
    listed = config.pretrain.objective.copy_and_resolve_references()
    recognition = listed.transformation_recognition.to_dict() | {"name": "transformation_recognition"}
    assert recognition == get("sarkar2020").objective.to_dict() | {"reads": "encoder"}
    del listed.transformation_recognition
    assert listed == get("combined").objective
    fields.resolve(config)
    own = fields.varied(config, "modalities", dict(config.compare.variants)["modalities"], {})
    wu = get("wu2023")
    assert own.pretrain.objective.transformation_recognition.to_dict() | {"name": own.pretrain.objective.name} == wu.objective.to_dict()
    assert {name: own.model[name] for name in wu.model} == wu.model.to_dict()
    for name in ("future_prediction", "alteration", "agreement", "cluster_identities", "teacher"):
        alone = get(name).objective.to_dict()
        assert {**alone, "weight": listed[name].weight} == {"name": name, **listed[name].to_dict()}
    assert listed.masked_timesteps.to_dict() | {"name": "masked_timesteps"} == get("pretrain").objective.to_dict() | {"weight": 1.0}


@pytest.mark.parametrize("corpus", ["demo", "nemo"])
def test_the_paper_masks_single_timesteps_and_regresses_intensities(corpus):
    config = get("paper", corpus)
    fields.resolve(config)
    objective = config.pretrain.objective
    assert (objective.name, objective.ratio, objective.span, objective.statistics_weight) == ("masked_timesteps", 0.15, 0, 0)
    assert (config.finetune.objective.name, config.finetune.objective.head) == ("emotion", "intensity")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_searches_never_see_the_test_fold(name):
    assert get(name).compare.fold == (
        "test" if name.split(".")[1] in ("label_fraction", "intensity_loss", "transfer", "validation", "normalisation") else "valid"
    )


def test_recording_statistics_are_compared_at_a_part_of_the_label_counts():
    for corpus, counts in (("nemo", (60, 600)), ("mosei", (0.01, 0.2))):
        config = get("experiments.normalisation", corpus)
        fields.resolve(config)
        (_, changes) = config.compare.variants[1]
        part = fields.varied(config, "", changes, {}).compare
        assert set(part.label_counts) == set(counts) < set(config.compare.label_counts) and part.seeds == 3


@pytest.mark.parametrize("name", corpora.names())
def test_what_a_corpus_sets_are_fields_of_a_comparison(name):
    assert set(corpora.settings(name)) <= set(fields.flat(get("quickstart")))


@pytest.mark.parametrize("name", COMPARISONS)
def test_what_a_comparison_keeps_are_its_fields(name):
    assert set(get(name).fixed) <= set(fields.flat(get(name)))


def test_no_config_file_builds_on_another_but_for_scratch_and_lists_of_variants():
    root = Path(__file__).parents[1]
    building = {path.stem for folder in ("configs", "experiments") for path in (root / folder).glob("*.py") if _builds_on_another(path)}
    assert building == {
        "scratch",
        "mask_ratio",
        "mask_span",
        "pretraining_length",
        "unlabelled_data",
        "intensity_loss",
        "transfer",
        "validation",
        "normalisation",
        "objectives",
        "passes",
        "regularisation",
        "visible_only",
    }


def _builds_on_another(path: Path) -> bool:
    return not path.stem.startswith("bench") and any(
        line.startswith(("from configs", "from experiments")) for line in path.read_text().splitlines()
    )


PAPERS = {
    "vazquez_rodriguez2022": {"objective.reads": "summary"},
    "sarkar2020": {"train.strategy": "probe"},
    "wu2023": {},
}


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_pretraining_is_fine_tuned_with_the_encoder_it_has(name, trained, tiny_config, demo_folder):
    pretraining = get(name)
    small = TINY | {"train.crop": 2.56, "model.width": 8, "model.kernel": 3, "objective.pieces": 4, "data.prepared": str(demo_folder)}
    pretraining.update_from_flattened_dict({field: value for field, value in small.items() if field in fields.flat(pretraining)})
    fields.check(pretraining)
    source, rows = trained(pretraining)
    assert [(row["arm"], row["fold"]) for row in rows[::2]] == [("pretrain", "valid"), ("pretrain", "test")]
    recognised = {metric for metric in rows[0]["metrics"] if metric.startswith("accuracy_")}
    assert len(recognised) == {"vazquez_rodriguez2022": 0, "sarkar2020": 7, "wu2023": 3 * 6}[name]
    config = tiny_config("finetune", PAPERS[name], init_from=str(source))
    (line,) = fields.resolve(config, PAPERS[name])
    fields.check(config)
    assert f"; {pretraining.model.name} of " in line and f", as in {source}; " in line
    assert config.model == pretraining.model
    _, rows = trained(config)
    assert rows[0]["arm"] == "pretrained" and rows[0]["metrics"]["mae"] > 0
