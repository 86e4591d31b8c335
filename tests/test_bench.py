"""The benchmarks' own code, on a tiny corpus; how fast it is, is not looked at."""

import functools
import importlib
import importlib.util
import os

import ml_collections
import pytest
import soundfile
from test_encode import RATE, tone

from experiments import (
    bench_comparison,
    bench_data,
    bench_encode,
    bench_objectives,
    bench_representation,
    bench_scaling,
    bench_statistics,
    bench_step,
    bench_sweep,
    objectives,
)
from jax_emossl import config as fields
from jax_emossl import results
from jax_emossl.comparison import Comparison
from jax_emossl.data import corpora
from jax_emossl.data.audio import Extractor


@pytest.mark.parametrize("name", ["pretrain", "scratch"])
def test_the_train_step_is_fed_as_in_training(name, tiny_config, demo_folder, monkeypatch):
    config = tiny_config(name)
    monkeypatch.setattr(importlib.import_module(f"configs.{name}"), "get_config", lambda corpus: config)
    monkeypatch.setattr(bench_data, "_TRAIN_STEPS", 3)
    found = bench_data.training(name, str(demo_folder))
    assert found["seconds"] > 0 and found["frames_per_second"] > 0


@pytest.mark.parametrize("side", ["sweep", "one by one, one device"])
def test_members_are_trained_together_or_one_by_one(side, tiny_config, monkeypatch):
    from configs import scratch

    config = tiny_config("scratch")
    monkeypatch.setattr(scratch, "get_config", lambda corpus: config.copy_and_resolve_references())
    monkeypatch.setattr(bench_sweep, "FIELDS", {"num_labels": 12})
    (times,) = bench_sweep.measure(side, "demo", members=2, steps=1, repeats=1)
    assert len(times) == (1 if side == "sweep" else 2) and min(times) > 0


def test_a_side_that_ends_by_itself_is_one_sentence():
    with pytest.raises(SystemExit, match="error: gone has ended by itself"):
        bench_step.medians({"gone": functools.partial(os._exit, 1)}, 1, 0)


def test_trainings_that_are_not_timed_do_not_compile():
    assert bench_sweep.whole([9.0, 1.0, 3.0, 2.0], 16) == 15 + 12 * 2
    assert bench_sweep.whole([9.0], 1) == 9


def test_encoding_is_timed_beside_opensmile(tmp_path):
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", tone(seed=i), RATE)
    speeds = bench_encode.times_real_time(sorted(tmp_path.iterdir()), Extractor.installed(), rounds=1)
    assert {"encode", "opensmile_package"} <= set(speeds) and min(speeds.values()) > 0


def test_a_step_is_timed_beside_that_of_unmasked_steps_and_products_alone_where_pytorch_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench_step, "medians", lambda sides, *_: {name: (1e-3, made()[1]) for name, made in sides.items()})
    head, ours, visible = bench_step.measure("tiny", bench_step.Size(16, 1, 2, 4, 8), "bfloat16", rounds=1, seconds=0)
    assert head.startswith("tiny, bfloat16: 4 x 8 steps; peak ") and ours.startswith("  jax_emossl (0.01 M parameters): ")
    assert visible.startswith("  jax_emossl, unmasked steps alone (0.01 M parameters): ") and visible.endswith(" times as many")


def test_sides_take_turns_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(bench_step, "_LEAD_IN", 0)  # in this process alone
    size = bench_step.Size(16, 1, 2, 4, 8)
    ((took, number),) = bench_step.medians({"ours": functools.partial(bench_step.ours, size, "float32")}, 1, 0).values()
    assert took > 0 and number > 1000


def test_the_products_of_a_step_are_those_that_its_program_has():
    size = bench_step.Size(16, 1, 2, 4, 8)
    projections, attention = 2 * 100 * 16 + 12 * 16 * 16, 2 * 8 * 16  # per model step, multiply and add each
    assert size.products == 3 * 4 * 8 * 2 * (projections + attention)


def test_a_fold_is_encoded_beside_a_product_of_matrices(demo_corpus):
    made = bench_representation.measure(str(demo_corpus.path), "valid", 8, rounds=1)
    assert made["segments"] == 8 and made["model_steps"] > 8
    assert made["steps_per_second"] == pytest.approx(made["model_steps"] / made["seconds"]) and made["share_of_limit"] > 0


def test_runs_are_started_in_one_process_and_in_two(monkeypatch):
    started = []
    monkeypatch.setattr(bench_scaling, "seconds", lambda corpus, layout, steps, cache: started.append((layout, steps)) or 2.0 + 0.1 * steps)
    made = bench_scaling.measure("demo", ["1x1", "2x1"], steps=10, rounds=2)
    assert started.count(("2x1", 11)) == 2 and started.count(("2x1", 1)) == 3
    assert made["2x1"] == pytest.approx({"cold_s": 2.1, "cached_s": 2.1, "step_ms": 100.0})


def test_what_passes_until_a_file_is_written_belongs_to_its_phase(tmp_path):
    """Two rotations, each with its pretraining, a linear answer and fine-tunings at two label counts; the constant keeps no predictions."""

    def row(arm, number):
        return results.row("demo", True, arm, number, 0, "test", None, None, ({}, {}))

    ends, rows = {}, [row("constant", 12)]
    for rotation, start in (("a", 100), ("b", 200)):
        ends[f"pretrain/{rotation}/metrics.jsonl"] = start + 10
        for arm, number, end in (
            ("frozen", 12, 11),
            ("frozen", 1200, 13),
            ("scratch", 12, 20),
            ("scratch", 1200, 40),
            ("pretrained", 1200, 90),
        ):
            rows.append(row(arm, number) | {"predictions": f"predictions/{rotation}/{arm}-{number}.npz"})
            ends[rows[-1]["predictions"]] = start + end
    rows.append(rows[-1] | {"variant": "its twin"})
    for name, end in ends.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (end, end))
    results.write(tmp_path / results.RESULTS_FILE, rows, ml_collections.ConfigDict())
    assert bench_comparison.phases(tmp_path, 95, 297) == {
        "start and pretraining": 15 + 20,
        "encoding and linear answers": 6,
        "fine-tuning, 12 labels": 14,
        "fine-tuning, 1,200 labels": 140,
        "report": 7,
    }


def test_a_comparison_that_is_there_is_not_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_comparison", str(tmp_path), "--config=configs/quickstart.py"])
    with pytest.raises(SystemExit, match="2"):
        bench_comparison.main()
    assert f"{tmp_path} is there: name a new folder" in capsys.readouterr().err


def test_a_run_that_fails_is_not_timed(tmp_path):
    with pytest.raises(RuntimeError, match="nowhere"):
        bench_scaling.seconds("nowhere", "1x1", 1, tmp_path)


@pytest.mark.parametrize("category", [False, True])
def test_the_made_up_comparison_is_one(category, tmp_path):
    bench_statistics.write(tmp_path, recordings=6, segments=60, rotations=2, seeds=1, category=category)
    c = Comparison(tmp_path)
    assert c.synthetic and c.recordings == 6 and c.budgets("", "pretrained", "scratch") == [30, 60, 150, 600, 0]
    assert len(results.load_arrays(tmp_path / results.ILLUSTRATION)["after"]) == 30


@pytest.mark.parametrize("head", ["category", "intensity"])
def test_read_outs_are_made_of_every_strength(head, monkeypatch):
    monkeypatch.setattr(bench_statistics, "_TRAINING", 80)
    monkeypatch.setattr(bench_statistics, "_DIMENSIONS", 4)
    made, read_out = [], bench_statistics.linear.read_out
    monkeypatch.setattr(bench_statistics.linear, "read_out", lambda *own: made.append(own[3]) or read_out(*own))
    bench_statistics.read_outs(head)
    assert len(made) == 6


def test_the_operations_of_every_objective_are_counted():
    config = objectives.get_config()
    fields.resolve(config)
    name, changes = config.compare.variants[0]
    own = fields.part(fields.varied(config, name, changes, corpora.targets(config.data)[0]), "pretrain")
    flops, _, rows, _ = bench_objectives.measure(own, 0)
    assert rows == objectives.ROWS[name] and flops / rows > 1e6
