"""The command that asks a model about recordings."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
from test_encode import RATE, tone

from jax_emossl import encode, load_model, predict
from jax_emossl.data import csd
from jax_emossl.errors import UserError


def run(*arguments):
    predict.run([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def heard(tmp_path_factory, tiny_config, trained):
    """A model trained on five made-up voices, and their folder."""
    folder = tmp_path_factory.mktemp("voices")
    (folder / "wav").mkdir()
    rows = []
    for i in range(5):
        for take in range(3):
            soundfile.write(folder / "wav" / f"s{i}_{take}.wav", tone(0.5, 100 + 40 * take, seed=i), RATE)
            rows.append({"file": f"s{i}_{take}.wav", "speaker": f"s{i}", "emotion": ("happy", "sad", "neutral")[take]})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    encode.run(["--audio", str(folder / "wav"), "--labels", str(folder / "labels.csv"), "--out", str(folder / "corpus"), "--jobs", "1"])
    config = tiny_config("scratch", {"data.prepared": "", "data.corpus": str(folder / "corpus")})
    return trained(config)[0], folder


def test_audio_becomes_tables_figures_and_a_page(heard, tmp_path):
    workdir, folder = heard
    soundfile.write(tmp_path / "long talk.wav", tone(3.05), RATE)
    out = tmp_path / "said"
    run("--run", workdir, tmp_path / "long talk.wav", folder / "wav", "--out", out, "--window", 1, "--step", 0.5, "--html")
    table, curve = pd.read_csv(out / "predictions.csv"), pd.read_csv(out / "over_time.csv")
    assert len(table) == 16 and table.recording[0] == "long talk.wav"
    columns = [f"{name}_probability" for name in ("neutral", "happy", "sad")]
    np.testing.assert_allclose(table[columns].sum(1), 1, atol=1e-5)
    assert json.loads((out / "predictions.json").read_text())[0]["category"] == table.category[0]
    own = curve[curve.recording == "long talk.wav"]
    assert own.start.tolist()[:4] == [0, 0.5, 1, 1.5] and own.end.max() == pytest.approx(table.end[0])
    assert len(list((out / "figures").glob("*.png"))) == 16
    page = (out / "index.html").read_text()
    assert page.count("<audio") == 16 and "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page


def test_a_recording_alone_and_among_others_gets_the_same_numbers(heard, tmp_path):
    workdir, folder = heard
    run("--run", workdir, folder / "wav", "--out", tmp_path / "all")
    run("--run", workdir, folder / "wav" / "s2_1.wav", "--out", tmp_path / "one")
    together = pd.read_csv(tmp_path / "all/predictions.csv").set_index("recording").loc[["s2_1.wav"]].reset_index()
    pd.testing.assert_frame_equal(together, pd.read_csv(tmp_path / "one/predictions.csv"), atol=1e-5)


def test_audio_and_its_features_give_the_same_numbers(heard, tmp_path):
    workdir, folder = heard
    model = load_model(workdir)
    (path,) = [folder / "wav" / "s0_0.wav"]
    from jax_emossl.data.audio import Extractor

    np.save(tmp_path / "s0_0.npy", Extractor.installed()(path))
    run("--run", workdir, path, tmp_path / "s0_0.npy", "--out", tmp_path / "said")
    first, second = pd.read_csv(tmp_path / "said/predictions.csv").drop(columns="recording").to_dict("records")
    assert first == pytest.approx(second)
    assert first["happy_probability"] == pytest.approx(model(np.load(tmp_path / "s0_0.npy"))["probability"][1].item(), abs=1e-5)


def test_segments_of_a_table_and_of_a_csd(heard, tmp_path):
    workdir, folder = heard
    run("--run", workdir, folder / "corpus/features.csd", "--segments", folder / "corpus/labels.csd", "--out", tmp_path / "csd")
    with csd.Sequence(folder / "corpus/labels.csd") as labels:
        assert len(pd.read_csv(tmp_path / "csd/predictions.csv")) == sum(labels.shape(entry)[0] for entry in labels.ids)
    table = tmp_path / "segments.csv"
    table.write_text("file,start,end\ns0_0.wav,0,0.2\ns0_0.wav,0.2,0.4\n")
    run("--run", workdir, folder / "wav" / "s0_0.wav", "--segments", table, "--out", tmp_path / "table")
    assert pd.read_csv(tmp_path / "table/predictions.csv")[["start", "end"]].to_numpy().tolist() == [[0, 0.2], [0.2, 0.4]]


def test_bad_input_is_one_sentence_and_nothing_is_written(heard, finetuning, pretraining, tmp_path):
    workdir, folder = heard
    wav, out = folder / "wav" / "s0_0.wav", tmp_path / "said"

    def refuses(words, *arguments):
        with pytest.raises(UserError, match=words):
            run("--out", out, *arguments)
        assert not out.exists() and not list(tmp_path.glob(".said*"))

    again = tmp_path / "elsewhere"
    again.mkdir()
    shutil.copy(wav, again)
    refuses("is the second input named s0_0.wav", "--run", workdir, wav, again)
    refuses("is a pretraining, which says nothing of emotions", "--run", pretraining, wav)
    refuses("was trained on features that openSMILE's .* do not give", "--run", finetuning, wav)
    refuses("does not exist or is not a file", "--run", workdir, tmp_path / "gone.wav")
    refuses("is neither audio", "--run", workdir, _written(tmp_path / "a.txt", "x"))
    refuses("is no audio file that can be read", "--run", workdir, _written(tmp_path / "a.wav", "x"))
    refuses("where the model reads 25", "--run", workdir, _saved(tmp_path / "a.npy", np.zeros((50, 3))))
    refuses("must be positive seconds", "--run", workdir, wav, "--window", 0)
    refuses(
        "names no segment of s0_0.wav", "--run", workdir, wav, "--segments", _written(tmp_path / "s.csv", "file,start,end\nb.wav,0,1\n")
    )
    beyond = _written(tmp_path / "s.csv", "file,start,end\ns0_0.wav,0.1,0.5\ns0_0.wav,0.1,8\n")
    refuses("s.csv, row 2, runs from 0.1 s to 8 s, but s0_0.wav ends at 0.46 s", "--run", workdir, wav, "--segments", beyond)
    twice = _written(tmp_path / "s.csv", "file,start,end,start \ns0_0.wav,0.1,0.2,0.1\n")
    refuses("s.csv has two columns 'start'", "--run", workdir, wav, "--segments", twice)
    csd.write(tmp_path / "s.csd", "rows", [("s0_0.wav", np.zeros((1, 1)), np.array([[7.0, 8.0]]))])
    refuses("has no frame between", "--run", workdir, wav, "--segments", tmp_path / "s.csd")
    refuses("s0_0.wav has more than 1048576 windows", "--run", workdir, wav, "--window", 1e-7, "--step", 1e-7)
    refuses("holds no model", "--run", tmp_path, wav)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "opensmile", None)
        refuses("needs the package opensmile, which is not installed here", "--run", workdir, wav)
    hop = tmp_path / "hop.csd"
    with csd.Sequence(folder / "corpus/features.csd") as features:
        frames, intervals = features.read("s0")
        csd.write(hop, "eGeMAPSv02", [("s0", frames, intervals * 2)], features.metadata)
    refuses("has frames every 0.02 s where the model reads one every 0.01 s", "--run", workdir, hop)
    csd.write(hop, "eGeMAPSv02", [("s0", frames, intervals)], {"dimension names": [f"other_{i}" for i in range(25)]})
    refuses("use the same features in the same order", "--run", workdir, hop)
    csd.write(hop, "eGeMAPSv02", [("s0", frames[:0], intervals[:0])], {})
    refuses("has no entry with frames", "--run", workdir, hop)
    none = tmp_path / "none.csd"
    csd.write(none, "rows", [("s0_0.wav", np.zeros((0, 1), np.float32), np.zeros((0, 2)))], {})
    refuses("names no segment of s0_0.wav", "--run", workdir, wav, "--segments", none)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "_MOST", 10_000)
        refuses("would hold s0_0.wav 40 times: take a larger --step", "--run", workdir, wav, "--window", 4, "--step", 0.1)
    out.mkdir()
    with pytest.raises(UserError, match="said exists: remove it, or give another --out"):
        run("--run", workdir, wav, "--out", out)


def _written(path, content):
    path.write_text(content)
    return path


def _saved(path, array):
    np.save(path, array)
    return path


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CLICK = """
<script>
addEventListener("load", () => {
  const section = document.querySelector(".recording"), svg = section.querySelector("svg"), sound = section.querySelector("audio");
  const report = () => {
    const box = svg.getBoundingClientRect();
    svg.dispatchEvent(new MouseEvent("click", {clientX: box.left + box.width * 0.5, clientY: box.top + 5, bubbles: true}));
    document.title = `curves ${svg.querySelectorAll("polyline").length}, shape ${svg.querySelectorAll("polygon").length}, ` +
      `at ${section.dataset.time}, sound ${Math.abs(sound.currentTime - section.dataset.time) < .01}, ` +
      `said ${section.querySelector(".now").textContent.split(":")[0]}, of ${sound.duration.toFixed(1)}`;
  };
  if (sound.readyState > 0) report(); else sound.addEventListener("loadedmetadata", report);
});
</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium is installed: the page is not tested (apt-get install chromium)")
def test_the_page_draws_the_curves_and_a_click_seeks_the_sound(heard, tmp_path):
    workdir, _ = heard
    soundfile.write(tmp_path / "talk.wav", tone(3.0), RATE)
    run("--run", workdir, tmp_path / "talk.wav", "--out", tmp_path / "said", "--window", 1, "--html")
    page = tmp_path / "said/index.html"
    page.write_text(page.read_text().replace("</body>", CLICK))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        "--dump-dom",
        f"--user-data-dir={tmp_path / 'browser'}",
    ]
    seen = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    title = seen[seen.index("<title>") + 7 : seen.index("</title>")]
    assert title.startswith("curves 3, shape 1, at 1.4") and title.endswith("of 3.0"), title
    assert "sound true, said 1.4" in title and "s, probability from 1.00 to 2.00 s" in title, title


def test_the_command_ends_with_one_sentence(tmp_path):
    command = [sys.executable, "-m", "jax_emossl.predict", "--run", str(tmp_path), str(tmp_path / "a.wav"), "--out", str(tmp_path / "x")]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and "Traceback" not in failed.stderr


def test_the_segments_of_a_corpus_that_encode_wrote_can_be_asked_for(heard, tmp_path):
    workdir, folder = heard
    run("--run", workdir, folder / "wav", "--out", tmp_path / "said", "--segments", folder / "corpus" / "segments.csv")
    assert len(pd.read_csv(tmp_path / "said/predictions.csv")) == 15


def test_entries_without_frames_are_left_out_and_names_that_are_none_ignored(heard, tmp_path, capsys):
    workdir, folder = heard
    with csd.Sequence(folder / "corpus/features.csd") as features:
        frames, intervals = features.read("s0")
    entries = [("$s_0$", frames, intervals + 600), ("empty", frames[:0], intervals[:0]), ("é" * 300, frames, intervals)]
    csd.write(tmp_path / "odd.csd", "eGeMAPSv02", entries, {"dimension names": ["same"] * 25})
    run("--run", workdir, tmp_path / "odd.csd", "--out", tmp_path / "said", "--html", "--window", 0.001, "--step", 0.5)
    assert pd.read_csv(tmp_path / "said/predictions.csv").recording.tolist() == ["$s_0$", "é" * 300]
    shown = capsys.readouterr()
    assert "1 entries without frames, empty the first, which are left out" in shown.err and "2 recordings, 0.0 minutes" in shown.out
    assert sorted(path.stem for path in (tmp_path / "said/figures").iterdir()) == ["0000_$s_0$", f"0001_{'é' * 100}"]


def test_a_file_whose_name_is_no_text_is_predicted(heard, tmp_path):
    workdir, folder = heard
    with csd.Sequence(folder / "corpus/features.csd") as features, open(os.fsencode(tmp_path) + b"/caf\xe9.NPY", "wb") as file:
        np.save(file, features.read("s0")[0])
    run("--run", workdir, *tmp_path.glob("*.NPY"), "--out", tmp_path / "said", "--html")
    assert pd.read_csv(tmp_path / "said/predictions.csv").recording.tolist() == ["caf?.NPY"]


def test_loudness_is_drawn_over_time(heard):
    from jax_emossl import page
    from jax_emossl.model import Recording

    model = load_model(heard[0])
    loud = model.card.frontend.names.index("Loudness_sma3")
    starts = np.r_[0:1:0.01, 4:5:0.01]  # three seconds of nothing between
    frames = np.zeros((len(starts), 25), np.float32)
    frames[100:, loud] = 1
    shape, label = page._loudness(model, Recording("x", frames, None, np.column_stack([starts, starts + 0.01])))
    heights = [high for _, high in shape]
    assert label == "loudness" and heights.index(1) == pytest.approx(0.8 * len(heights), abs=1)


def test_many_recordings_are_asked_about_in_turns_with_the_same_answers(heard, tmp_path, monkeypatch):
    workdir, folder = heard
    run("--run", workdir, folder / "wav", "--out", tmp_path / "together")
    monkeypatch.setattr(predict, "_TOGETHER", 100)
    run("--run", workdir, folder / "wav", "--out", tmp_path / "turns")
    for name in ("predictions", "over_time"):
        one, other = (pd.read_csv(tmp_path / how / f"{name}.csv") for how in ("together", "turns"))
        pd.testing.assert_frame_equal(one, other, atol=1e-5)


def test_by_what_features_are_normalised_is_said_as_it_is(heard, capsys, tmp_path):
    model = load_model(heard[0])
    assert model.normalised == "by the recording's own frames, n s of them with the weight n/(n + 180) against the training fold"
    alone = dataclasses.replace(model, card=dataclasses.replace(model.card, frontend=dataclasses.replace(model.card.frontend, by="none")))
    assert alone.normalised == "by the training fold alone"
