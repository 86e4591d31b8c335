import importlib
import re

import pytest

from jax_emossl import config as fields
from jax_emossl import dry_run
from jax_emossl.errors import UserError


@pytest.fixture
def described(tmp_path, monkeypatch):
    """Describes a resolved config with dotted fields replaced, in a cache that holds nothing."""
    monkeypatch.setenv("EMOSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dry_run, "_speed", lambda tokens, width: 1e9)

    def describe(name, changes=(), corpus=""):
        config = importlib.import_module(name).get_config(corpus)
        config.update_from_flattened_dict(dict(changes))
        fields.resolve(config, dict(changes))
        return dry_run.describe(config, tmp_path / "workdir")

    return describe


def estimate(lines):
    """Minutes and gigabytes."""
    return [float(number) for number in re.findall(r"([\d.]+) (?:min|GB)", lines[-1])]


def test_every_field_is_shown_as_it_would_be_used(described):
    lines = described("configs.quickstart", {"seed": 7})
    assert {"  seed = 7", "  model.width = 32", "  compare.label_counts = (30, 120, 0)", "  data.corpus = 'demo'"} <= set(lines)


def test_a_comparison_counts_its_trainings_and_makes_nothing(described, tmp_path):
    lines = described("configs.quickstart")
    assert "trains 1 x pretraining of 600 steps of 64 x 3.84 s" in lines
    assert "trains 16 x fine-tuning of 120 steps of 32 x 8 s" in lines  # 2 arms x 2 counts x 2 seeds x 2 rates
    assert any(line.startswith("reads ") and "DEMO_COVAREP.csd" in line and "to be generated and prepared first" in line for line in lines)
    assert any(line.startswith(f"writes {tmp_path}/workdir: ") for line in lines)
    assert lines[-1].startswith("ESTIMATE on this ") and "may be off by a factor of 3" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_variants_and_rotations_count(described, demo_files):
    folds = ",".join(str(demo_files / name) for name in ("folds.json", "other.json"))
    (demo_files / "other.json").write_text((demo_files / "folds.json").read_text())
    lines = described("experiments.label_fraction", {"data.folds": folds})
    assert [line.split(", ")[2].rsplit("/")[-1] for line in lines if line.startswith("reads")] == ["folds.json", "other.json"]
    assert "trains 2 x pretraining of 600 steps of 64 x 3.84 s" in lines
    # 2 arms x 3 counts x 5 seeds x 4 rates x 2 rotations; linear read-outs are no trainings
    assert "trains 240 x fine-tuning of 60 steps of 32 x 8 s" in lines
    assert "trains 80 x fine-tuning of 500 steps of 32 x 8 s" in lines  # all of 2000 labels, in 8 epochs
    bounded = described("experiments.label_fraction", {"data.folds": folds, "finetune.train.most_steps": 300})
    assert "trains 80 x fine-tuning of 300 steps of 32 x 8 s" in bounded


def test_what_variants_share_is_counted_once(described, trained, tiny_config):
    heads = (("categories", ()), ("intensities", (("finetune.objective.head", "intensity"),)))
    lines = described("configs.quickstart", {"compare.variants": heads})
    assert "trains 1 x pretraining of 600 steps of 64 x 3.84 s" in lines and "trains 32 x fine-tuning of 120 steps of 32 x 8 s" in lines
    spans = (("long", ()), ("short", (("pretrain.objective.span", 0.2),)))
    lines = described("configs.quickstart", {"compare.variants": spans})
    assert "trains 2 x pretraining of 600 steps of 64 x 3.84 s" in lines
    assert "trains 24 x fine-tuning of 120 steps of 32 x 8 s" in lines  # scratch is the same


def test_a_pretraining_that_is_there_is_not_counted(described, pretraining):
    assert not any("pretraining of" in line for line in described("configs.quickstart", {"compare.pretrain_on": str(pretraining)}))


def test_without_an_arm_that_reads_it_nothing_is_pretrained(described):
    lines = described("configs.quickstart", {"compare.arms": ("scratch", "functionals")})
    assert [line for line in lines if line.startswith("trains")] == [
        "trains 8 x fine-tuning of 120 steps of 32 x 8 s",
        "trains 4 x fine-tuning of 500 steps of 32 x 8 s",
    ]


def test_a_prepared_corpus_tells_its_segments(described, demo_corpus):
    lines = described("configs.pretrain", {"data.prepared": str(demo_corpus.path)})
    segments = ", ".join(f"{name} {len(fold)}" for name, fold in demo_corpus.folds.items())
    assert f"reads {demo_corpus.path}, prepared; segments: {segments}" in lines and "train 36" in segments
    assert "trains 1 x training of 2000 steps of 64 x 2.56 s" in lines


@pytest.mark.parametrize(("labels", "steps"), [(0, 652), (30, 120)])
def test_a_fine_tuning_is_stretched_as_it_will_be(monkeypatch, described, labels, steps):
    monkeypatch.setattr(dry_run, "_ASSUMED", dry_run._ASSUMED._replace(folds={"train": (2608, 800_000), "valid": (500, 200_000)}))
    assert f"trains 1 x training of {steps} steps of 32 x 8 s" in described("configs.scratch", {"num_labels": labels})


def test_time_grows_with_the_steps_and_memory_with_the_batch(described, demo_folder):
    base = {"data.prepared": str(demo_folder), "train.eval_every": 10_000}
    one, longer, wider = (
        estimate(described("configs.pretrain", base | more))
        for more in ({}, {"train.steps": 20_000}, {"train.batch_size": 640, "train.steps": 200})
    )
    assert longer[0] == pytest.approx(10 * one[0], rel=0.02) and longer[1] == one[1]
    assert wider[0] == pytest.approx(one[0], rel=0.02) and wider[1] > one[1]


def test_where_model_steps_lie_is_said_and_counted(described, demo_folder):
    whole, mapped = (
        described("configs.quickstart", {"data.prepared": str(demo_folder), "data.resident": how}) for how in ("auto", "mapped")
    )
    said = [next(line for line in lines if "GB of model steps" in line) for lines in (whole, mapped)]
    assert "resident" in said[0] and "mapped" in said[1]
    assert estimate(whole)[1] >= estimate(mapped)[1]


def test_files_that_are_not_there_are_named(described, tmp_path, monkeypatch):
    monkeypatch.setenv("EMOSSL_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/nemo/NEMO_eGeMAPSv02.csd does not exist"):
        described("configs.pretrain", corpus="nemo")


def test_an_evaluation_trains_nothing(described, pretraining, tmp_path):
    lines = described("configs.evaluate", {"init_from": str(pretraining)})
    assert lines[-2:] == [
        f"reads {pretraining}, trained on demo",
        f"reads that corpus, or the one named; trains nothing; writes {tmp_path}/workdir",
    ]


def test_an_encoder_that_is_not_there_is_missed(described, tmp_path):
    with pytest.raises(UserError, match=f"init_from is '{tmp_path}/none', which holds no checkpoint"):
        described("configs.finetune", {"init_from": f"{tmp_path}/none"})


def test_a_label_count_that_is_asked_for_twice_is_trained_once(described):
    (line,) = [line for line in described("configs.quickstart", {"compare.label_counts": (2000, 0)}) if "fine-tuning" in line]
    assert line.startswith("trains 8 x ")  # 2 arms x 2 seeds x 2 rates


def test_corpora_that_are_joined_are_counted_together():
    one = dry_run._Sizes(75, 0.01, {"train": (2, 10), "valid": (1, 5)})
    other = dry_run._Sizes(75, 0.01, {"train": (3, 30), "valid": (4, 7), "test": (1, 1)})
    assert dry_run._Sizes.together([one, other]) == dry_run._Sizes(75, 0.01, {"train": (5, 40), "valid": (5, 12)})


def test_what_nothing_trains_takes_no_time(described):
    lines = described("configs.quickstart", {"compare.arms": ("functionals",)})
    assert not any(line.startswith("trains") for line in lines) and estimate(lines)[0] == 0


def test_products_are_timed_in_a_moment():
    assert 1e6 < dry_run._speed(64, 16) < 1e16


def test_label_counts_that_the_fold_does_not_have_are_left_out(described, demo_folder):
    lines = described("configs.quickstart", {"data.prepared": str(demo_folder), "compare.label_counts": (12, 500)})
    assert any(line.startswith("trains 8 x fine-tuning") for line in lines)  # 2 arms x 1 count x 2 seeds x 2 rates
