"""openSMILE's engine gives the numbers of its own Python package, whatever it described before."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jax_emossl.data import audio, descriptors
from jax_emossl.data.audio import Extractor
from jax_emossl.data.descriptors import Engine, _configuration

opensmile = descriptors.package()


def speech(seconds, rate, seed):
    """A gliding buzz in noise, with a pause."""
    t = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * k * (90 + 40 * seed + 60 * t) * t) / k for k in range(1, 8))
    noise = np.random.default_rng(seed).normal(size=len(t))
    return (0.1 * buzz * (np.sin(7 * t) > -0.5) + 0.01 * noise).astype(np.float32)


def by_the_package(feature_set):
    return opensmile.Smile(opensmile.FeatureSet[feature_set], opensmile.FeatureLevel.LowLevelDescriptors)


@pytest.mark.parametrize("feature_set", audio.FEATURE_SETS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_one_engine_describes_signal_after_signal_as_the_package_does_each(feature_set, rate):
    engine, smile = Engine(feature_set, rate), by_the_package(feature_set)
    assert engine.names == list(smile.feature_names)
    assert engine(speech(0.01, rate, 0)).shape == (0, len(engine.names))  # too short for a frame
    for seed, seconds in enumerate((1.3, 0.2, 0.7)):
        signal = speech(seconds, rate, seed)
        np.testing.assert_array_equal(engine(signal), smile.process_signal(signal, rate).to_numpy(np.float32))


AFTER_TENSORFLOW = """
import sys
import numpy as np
import tensorflow
sys.path.insert(0, "tests")
from test_descriptors import Engine, speech
np.save(sys.argv[1], np.concatenate([Engine("eGeMAPSv02", 16_000)(speech(0.5, 16_000, seed)) for seed in range(20)]))
"""


def test_beside_tensorflow_whose_library_has_functions_of_the_same_names(tmp_path):
    """Each engine is new: the wrong function wrote beyond what an engine had allotted when it started."""
    pytest.importorskip("tensorflow")
    file = tmp_path / "made.npy"
    subprocess.run([sys.executable, "-c", AFTER_TENSORFLOW, file], cwd=Path(__file__).parents[1], check=True)
    engine = Engine("eGeMAPSv02", 16_000)
    np.testing.assert_array_equal(np.load(file), np.concatenate([engine(speech(0.5, 16_000, seed)) for seed in range(20)]))


def test_no_functional_is_computed():
    for feature_set in audio.FEATURE_SETS:
        text, _ = _configuration(feature_set)
        assert "instance[dataMemory]" in text and "cFunctionals" not in text and "cPitchShs" in text


@pytest.mark.skipif("EMOSSL_DATA" not in os.environ, reason="EMOSSL_DATA is not set: real speech is not described")
def test_real_speech_is_described_as_by_the_package_in_any_thread():
    extractor, smile = Extractor.installed(), by_the_package("eGeMAPSv02")
    paths = audio.files(Path(os.environ["EMOSSL_DATA"]) / "nemo_wav")[::5]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(extractor, paths))
    for path, frames in zip(paths, made, strict=True):
        np.testing.assert_array_equal(frames, smile.process_file(path).to_numpy(np.float32))
