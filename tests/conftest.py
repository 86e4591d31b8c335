"""What the tests share: a tiny synthetic corpus, tiny configs, and runs that are trained once."""

import importlib
import os
import sys
import types
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # halves the time of compilation

import jax
import ml_collections
import numpy as np
import pytest

from jax_emossl import workdir
from jax_emossl.data import corpus, prepared
from jax_emossl.data.corpora import demo
from jax_emossl.tasks import compare, train

ROOT = Path(__file__).parents[1]
FOLDS = {"train": 6, "valid": 3, "test": 3}
# Every segment has the same padded length and every run the same settings, so that all share a few compiled steps.
TINY = {
    "data.stack": 0.16,
    "data.bucket_growth": 8.0,
    "model.width": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.near": 0.32,
    "model.far": 1.28,
    "train.batch_size": 8,
    "train.steps": 6,
    "train.warmup_steps": 2,
    "train.eval_every": 2,
    "train.log_every": 3,
    "train.patience": 0,
}

# `--dist loadfile` gives whole files to workers: those that take longest come first, so that in the end none runs alone.
SLOWEST = (
    "faults/test_kill.py", "test_processes.py", "test_loop.py", "faults/test_stop.py", "test_compare.py", "faults/test_damage.py",
    "faults/test_disk.py", "test_several_corpora.py", "test_configs.py", "test_normalisation.py", "faults/test_fuzz.py", "test_extending.py",
    "test_objectives_compared.py",
)  # fmt: skip


def pytest_configure(config):
    config.option.loadscopereorder = False  # else pytest-xdist begins with the files that have the most tests


def pytest_collection_modifyitems(items):
    rank = {ROOT / "tests" / name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def same(a, b):
    """Asserts that two trees have the same arrays."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module", autouse=True)
def _no_more_programs_than_a_module_needs():
    """A process may map so much memory and no more; thousands of compiled programs, each with several maps, come to that and break."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory):
    """Corpora and compiled programs are cached for this session alone, and for the processes that it starts."""
    base = tmp_path_factory.getbasetemp()
    compiled = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled")  # all workers have one
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMOSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        jax.config.update("jax_compilation_cache_dir", compiled)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        yield


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory):
    """Folder with the `.csd` files and folds of a demo corpus of 12 recordings, 72 labelled segments."""
    folder = tmp_path_factory.mktemp("demo")
    demo.generate(folder, folds=FOLDS)
    return folder


@pytest.fixture(scope="session")
def demo_folder(demo_files, tmp_path_factory):
    """The same corpus, prepared."""
    folder = tmp_path_factory.mktemp("prepared") / "demo"
    files = [demo_files / name for name in ("DEMO_COVAREP.csd", "DEMO_Labels.csd", "folds.json")]
    corpus.build(*files, folder, unlabelled=True, name="demo")
    return folder


@pytest.fixture(scope="session")
def demo_corpus(demo_folder):
    return prepared.load(demo_folder)


@pytest.fixture(scope="session")
def tiny_config(demo_folder):
    """Makes the config of configs/<name>.py on the prepared demo corpus, small, with dotted fields replaced."""

    def make(name, fields=(), **top):
        config = importlib.import_module(f"configs.{name}").get_config()
        pretraining = {"train.crop": 2.56} | ({"objective.span": 0.64} if "span" in config.objective else {})
        small = TINY | ({"train.probe_steps": 2, "train.epochs": 0.0} if "num_labels" in config else pretraining)
        config.update_from_flattened_dict(small | {"data.prepared": str(demo_folder)} | dict(fields) | top)
        return config

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Trains a config as the command line does; returns the workdir and the rows of its results."""

    def run(config, folder=None):
        folder = folder or tmp_path_factory.mktemp("run")
        workdir.enter(folder, config)
        return folder, train.run(config, folder)

    return run


@pytest.fixture(scope="session")
def pretraining(tiny_config, trained):
    """Workdir of a finished tiny pretraining."""
    return trained(tiny_config("pretrain"))[0]


@pytest.fixture(scope="session")
def finetuning(tiny_config, trained, pretraining):
    """Workdir of a tiny fine-tuning from that pretraining."""
    return trained(tiny_config("finetune", init_from=str(pretraining)))[0]


@pytest.fixture(scope="session")
def comparison_config(tiny_config):
    """A quickstart with every arm, two label counts and two seeds."""
    from configs import quickstart

    config = quickstart.get_config()
    for part, name in (("pretrain", "pretrain"), ("finetune", "finetune")):
        whole = tiny_config(name)
        config.data, config.model = whole.data, whole.model
        config[part].objective = whole.objective
        # A comparison's fine-tunings take some of their settings from its grid.
        config[part].train = ml_collections.ConfigDict({field: whole.train[field] for field in config[part].train})
    config.compare.update({"label_counts": (12, 0), "seeds": 2, "learning_rates": (1e-3,), "strategies": ("linear", "probe-then-full")})
    config.compare.arms = ("pretrained", "frozen", "pretrained+functionals", "scratch", "random", "functionals")
    return config


@pytest.fixture(scope="session")
def comparison(comparison_config, tmp_path_factory):
    """Workdir and rows of that comparison."""
    folder = tmp_path_factory.mktemp("comparison")
    workdir.enter(folder, comparison_config)
    return folder, compare.run(comparison_config, folder)


@pytest.fixture(scope="session")
def sdk():
    """The SDK's data half; its model half needs PyTorch and is not wanted."""
    pytest.importorskip("validators", reason="the CMU SDK (cmu-multimodal-sdk) is not installed")
    sys.modules.setdefault("mmsdk.mmmodelsdk", types.ModuleType("mmsdk.mmmodelsdk"))
    mmdatasdk = pytest.importorskip("mmsdk.mmdatasdk", reason="the CMU SDK (cmu-multimodal-sdk) is not installed")
    sys.modules["mmsdk.mmdatasdk.dataset.dataset"].epsilon = 1e-5
    return mmdatasdk
