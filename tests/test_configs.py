import importlib
import json
import pkgutil
from pathlib import Path

import ml_collections
import pytest

import configs
from jax_emossl import tasks, workdir
from jax_emossl.tasks import compare

EXPERIMENTS = sorted(p.stem for p in (Path(__file__).parents[1] / "experiments").glob("*.py") if not p.stem.startswith("bench"))
NAMES = sorted(module.name for module in pkgutil.iter_modules(configs.__path__))


def get(name, *corpus):
    return importlib.import_module(f"configs.{name}").get_config(*corpus)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_names_its_corpus_and_files_and_a_task(name):
    config = get(name, "nemo")
    assert config.data.corpus == "nemo"
    assert all(config.data[field] == "" for field in ("features", "labels", "folds"))
    assert config.task in [module.name for module in pkgutil.iter_modules(tasks.__path__)]
    json.dumps(workdir.plain(config), allow_nan=False)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "evaluate"])
def test_the_corpus_is_the_demo_unless_named(name):
    assert get(name).data.corpus == "demo"


def test_pretraining_and_both_arms_share_the_backbone_and_the_frontend():
    runs = [get(name, "nemo") for name in ("pretrain", "finetune", "scratch")]
    assert runs[0].model == runs[1].model == runs[2].model
    assert runs[0].data == runs[1].data == runs[2].data
    assert runs[1].objective == runs[2].objective


def test_the_paper_masks_single_timesteps_and_regresses_intensities():
    config = get("paper")
    assert (config.pretrain.objective.name, config.pretrain.objective.span) == ("masked_timesteps", 1)
    assert (config.finetune.objective.name, config.finetune.objective.head) == ("emotion", "intensity")
    assert isinstance(config.compare, ml_collections.ConfigDict)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("corpus", ["demo", "nemo", "mosei"])
def test_every_experiment_is_a_comparison_whose_variants_set_fields_that_exist(name, corpus):
    config = importlib.import_module(f"experiments.{name}").get_config(corpus)
    assert config.task == "compare" and config.data.corpus == corpus
    compare._check(config.compare)
    for variant, fields in config.compare.variants:
        compare._varied(config, variant, fields, "")
    json.dumps(workdir.plain(config), allow_nan=False)
    if name != "label_fraction":
        assert config.compare.fold == "valid"  # searches never see the test fold
