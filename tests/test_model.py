"""A trained model for use: the numbers of the run, whatever it is asked beside, and again from a shared folder."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from safetensors.numpy import load_file, save_file

from jax_emossl import evaluation, load_model, portable, results, share, workdir
from jax_emossl.data import csd, functionals
from jax_emossl.errors import UserError
from jax_emossl.experiment import build
from jax_emossl.model import Model, Recording


@pytest.fixture(scope="module")
def model(finetuning):
    return load_model(finetuning)


@pytest.fixture(scope="module")
def frames(demo_files):
    """Raw frames of a test recording, with their infinities and holes."""
    with csd.Sequence(demo_files / "DEMO_COVAREP.csd") as features:
        return features.read("demo_test_001")


@pytest.fixture(scope="module")
def shared(finetuning, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    share.run([str(finetuning), "--out", str(folder), "--licence", "cc0-1.0"])
    return folder


def test_it_says_of_a_recording_what_the_run_said(model, finetuning, tiny_config, frames):
    experiment = build(tiny_config("scratch"))
    segments = experiment.segments("test")
    expected = evaluation.outputs(experiment, model.variables, segments)["scores"]
    fold = experiment.corpus.fold("test")
    mine = [i for i, r in enumerate(fold.recordings) if r == "demo_test_001"]
    made = model.predict([Recording("demo_test_001", frames[0], fold.intervals[mine], frames[1])])
    np.testing.assert_allclose(made["scores"], expected[mine], atol=2e-5)


def test_what_reads_functionals_says_the_same_as_run_folder_and_program(tiny_config, trained, frames, tmp_path):
    run, _ = trained(tiny_config("scratch", {"objective.reads": "encoder+functionals", "train.steps": 2}))
    share.run([str(run), "--out", str(tmp_path / "hub")])  # refuses a program that differs
    model, again = load_model(run), load_model(tmp_path / "hub")
    experiment = build(workdir.read_config(run))
    fold, segments = experiment.corpus.fold("test"), experiment.segments("test")
    mine = [i for i, r in enumerate(fold.recordings) if r == "demo_test_001"]
    asked = [Recording("demo_test_001", frames[0], fold.intervals[mine], frames[1])]
    expected = evaluation.outputs(experiment, model.variables, segments)["scores"][mine]
    assert np.ptp(expected, 0).min() > 0
    np.testing.assert_allclose(model.predict(asked)["scores"], expected, atol=1e-4)
    np.testing.assert_array_equal(again.predict(asked)["scores"], model.predict(asked)["scores"])
    width, layers = model.card.model["width"], model.card.model["layers"]
    pooled, functional = 2 * width * (layers + 1), functionals.number(len(model.card.frontend.names))
    assert model.variables["params"]["head"]["readout"]["kernel"].shape == (pooled + functional, len(model.classes))
    assert model.encode(frames[0][:300])["pooled"].shape == (pooled,)  # of the encoder alone


def test_a_recording_is_one_in_whatever_form_it_comes(model, frames):
    whole = np.nan_to_num(frames[0][:50], posinf=0, neginf=0)
    for given in (jnp.asarray(whole), whole.tolist(), pd.DataFrame(whole)):
        np.testing.assert_array_equal(model(given)["scores"], model(whole)["scores"])
        np.testing.assert_array_equal(model.encode(given)["pooled"], model.encode(whole)["pooled"])
    assert len(model([whole.tolist(), whole])["scores"]) == len(model([whole, whole])["scores"]) == 2


def test_what_stands_beside_a_recording_never_matters(model, frames):
    whole, part = frames[0][:400], frames[0][100:233]
    together = model([whole, part, frames[0][:77]])
    for i, own in enumerate((whole, part)):
        alone = model(own)
        assert alone.keys() == {"scores", "intensity", "mean", "probability", "present"}
        for name, values in alone.items():
            assert values.shape == (len(model.classes),)
            np.testing.assert_allclose(values, together[name][i], atol=1e-5)
    assert np.all((together["probability"] >= 0) & (together["probability"] <= 1)) and np.all(together["mean"] <= 3)


def test_answers_are_those_that_metrics_are_computed_from(model):
    scores = np.random.default_rng(0).normal(size=(50, len(model.classes))).astype(np.float32)
    decoded, said = model.trained.decode(scores, model.card.calibration), model.answer(scores)
    np.testing.assert_allclose(said["intensity"], decoded["median"], atol=1e-6)
    by_hand = model.trained.levels.decode(scores, model.card.calibration["scale"])
    np.testing.assert_allclose(said["mean"], by_hand.mean, atol=1e-5)


def test_embeddings_are_the_encoders(model, frames):
    made = model.encode(frames[0][:300])
    several = model.encode([frames[0][:300], frames[0][:90]])
    width, layers = model.card.model["width"], model.card.model["layers"]
    assert made["pooled"].shape == (2 * width * (layers + 1),) and made["sequence"].shape[1] == width
    np.testing.assert_allclose(several["pooled"][0], made["pooled"], atol=1e-5)
    np.testing.assert_allclose(made["pooled"][layers * width : (layers + 1) * width], made["sequence"].mean(0), atol=1e-5)


def test_a_pretraining_gives_embeddings_and_nothing_else(pretraining, frames):
    model = load_model(pretraining)
    assert model.encode(frames[0][:100])["pooled"].ndim == 1
    with pytest.raises(UserError, match="has no head: fine-tune it, or use its encode"):
        model(frames[0][:100])


def test_a_shared_folder_holds_the_same_bits(model, shared, frames):
    again = load_model(shared)
    for name, array in load_file(shared / "model.safetensors").items():
        own = model.variables
        for part in name.split("/"):
            own = own[part]
        np.testing.assert_array_equal(array, own)
    for name, values in again(frames[0][:200]).items():
        np.testing.assert_array_equal(values, model(frames[0][:200])[name])
    card = (shared / "README.md").read_text()
    assert "license: cc0-1.0" in card and "not for" not in card and "must not be used to judge individuals" in card
    assert "scratch" not in card and "pretrained" in card  # its own rows


def test_the_card_shows_the_intervals_of_a_comparison(finetuning, comparison, tmp_path):
    share.run([str(finetuning), "--out", str(tmp_path / "model"), "--comparison", str(comparison[0])])
    card = (tmp_path / "model/README.md").read_text()
    assert "pretrained less scratch [95 %]" in card and "(SYNTHETIC)" in card and "license: unknown" in card and "fill in" in card


def test_a_folder_that_exists_is_left_alone(finetuning, tmp_path):
    with pytest.raises(UserError, match="exists: remove it, or give another --out"):
        share.run([str(finetuning), "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_exported_program_needs_jax_alone(model, shared, frames, tmp_path):
    per_step = model.card.frontend.frames_per_step
    counts = np.array([30 * per_step, 17 * per_step + 3], np.int32)
    rows = np.stack([frames[0][: counts[0]], frames[0][200 : 200 + counts[0]]])
    rows[1, counts[1] :] = 1e9  # padding is not looked at
    np.savez(tmp_path / "in.npz", rows=rows, counts=counts)
    code = (
        "import sys, jax, numpy as np; f = np.load(sys.argv[1]); p = jax.export.deserialize(bytearray(open(sys.argv[2], 'rb').read()));"
        "np.savez(sys.argv[3], **p.call(f['rows'], f['counts'])); assert not any('emossl' in m or 'flax' in m for m in sys.modules)"
    )
    arguments = [str(tmp_path / "in.npz"), str(shared / "program.stablehlo"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=tmp_path)
    made, live = np.load(tmp_path / "out.npz"), model([row[:count] for row, count in zip(rows, counts, strict=True)])
    assert set(made) == set(live)
    for name in live:
        np.testing.assert_allclose(made[name], live[name], atol=1e-4)


def test_a_program_that_differs_is_not_shared(model, monkeypatch, finetuning, tmp_path):
    wrong = Model(model.card, model.objective, jax.tree.map(lambda leaf: leaf * 1.1, model.variables))
    monkeypatch.setattr(portable, "exported", lambda own, real=portable.exported: real(wrong))
    with pytest.raises(UserError, match="differs from the model by"):
        share.run([str(finetuning), "--out", str(tmp_path / "model")])
    assert not (tmp_path / "model").exists()


def test_neither_corpus_nor_tensorflow_is_needed(shared, tmp_path):
    code = (
        "import sys, numpy as np; from jax_emossl import load_model; m = load_model(sys.argv[1]);"
        "m(np.zeros((50, len(m.card.frontend.names)), np.float32)); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(shared)], check=True, cwd=ROOT, env={"PATH": "", "JAX_PLATFORMS": "cpu"})


def _edit(folder, **changes):
    table = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        own = table
        for parent in parents:
            own = own[parent]
        own[last] = value
    (folder / "config.json").write_text(json.dumps(table))


def _weights(folder, kept=lambda name: True, factor=lambda name: 1, more=()):
    weights = {name: array * np.float32(factor(name)) for name, array in load_file(folder / "model.safetensors").items() if kept(name)}
    weights |= {name: np.zeros(3, np.float32) for name in more}
    save_file(weights, folder / "model.safetensors")


def test_nothing_of_any_one_recording_is_shared(shared, pretraining, tmp_path):
    names = load_file(shared / "model.safetensors").keys()
    assert {name for name in names if name.startswith("constants")} == {"constants/overall/location", "constants/overall/scale"}
    share.run([str(pretraining), "--out", str(tmp_path / "encoder")])
    assert not any(name.startswith("constants") for name in load_file(tmp_path / "encoder" / "model.safetensors"))


def test_the_card_says_by_what_the_model_is_normalised(model):
    causal = dataclasses.replace(
        model, card=dataclasses.replace(model.card, frontend=dataclasses.replace(model.card.frontend, by="causal"))
    )
    cards = [share._card(own, "x", "unknown", "").replace("\n", " ") for own in (model, causal)]
    assert "with the weight n/(n + 180)" in cards[0] and "n of them with the weight n/(n + 40)" in cards[0]
    assert "(causal)" in cards[1] and "n/(n + 180)" not in cards[1]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").write_text("{"), "no model folder of this project, or damaged"),
        (lambda f: (f / "config.json").unlink(), "no model folder of this project, or damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 50), "no model folder of this project, or damaged"),
        (lambda f: _edit(f, format=7), "has format '7' where 1 is read"),
        (lambda f: _edit(f, card__model__width=48), "weights of other shapes"),
        (lambda f: _edit(f, card__model__name="oracle"), "does not describe a model of this version"),
        (lambda f: _edit(f, objective__name="os"), "does not describe a model of this version"),
        (lambda f: _edit(f, card__head="tail"), "does not describe a model of this version"),
        (lambda f: _edit(f, card__model__heads=0), "does not describe a model of this version"),
        (lambda f: _edit(f, card__calibration={}), "does not describe a model of this version"),
        (lambda f: _edit(f, objective__standards_prior="x"), "does not describe a model of this version"),
        (lambda f: _weights(f, lambda name: not name.startswith("constants")), "does not describe a model of this version"),
        (lambda f: _edit(f, card__calibration={"scale": [float("nan")] * 6, "threshold": [None] * 6}), "that are not finite"),
        (lambda f: _weights(f, factor=lambda name: np.nan if name.endswith("kernel") else 1), "that are not finite"),
        (lambda f: _weights(f, factor=lambda name: np.inf if name.startswith("constants") else 1), "that are not finite"),
        (lambda f: _weights(f, more=["params/head/readout/bias/more"]), "no model folder of this project, or damaged"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_sentence(damage, words, shared, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shared, folder)
    damage(folder)
    with pytest.raises(UserError, match=words):
        load_model(folder)


def test_where_there_is_no_model(tmp_path):
    with pytest.raises(UserError, match="holds no model: give the workdir of a training, or a folder that jax_emossl.share wrote"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.zeros((10, 3)), "has 3 features where the model reads 74"),
        (np.zeros(10), "shape"),
        (np.array([["x"] * 74]), "where numbers are needed"),
        ([], "There is no recording to answer for"),
    ],
)
def test_features_that_do_not_fit_are_one_sentence(features, words, model):
    for ask in (model, model.encode):
        with pytest.raises(UserError, match=words):
            ask(features)


def test_results_are_a_data_frame(comparison, finetuning):
    folder, rows = comparison
    frame = results.frame(folder)
    assert len(frame) == len(rows) and {"arm", "num_labels", "auroc", "auroc_happy", "selection_metric"} <= set(frame.columns)
    picked = frame[(frame.arm == "scratch") & (frame.budget == 12)]
    assert picked.auroc.tolist() == [row["metrics"]["auroc"] for row in rows if (row["arm"], row["budget"]) == ("scratch", 12)]
    assert len(results.frame(finetuning / "results.json")) == 4
