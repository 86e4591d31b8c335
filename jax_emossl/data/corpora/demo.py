"""The demo corpus: SYNTHETIC recordings in CMU-MOSEI's form, generated in seconds, always the same.

How emotion enters the features: a handful of hidden oscillations (think of syllables, pitch movements,
loudness swells) drives all 74 dimensions through one fixed mixing. Each emotion, in proportion to its
intensity, shifts the tempo and the steadiness of these oscillations, never their size: the mean and the
variance of every feature say nothing of emotion, only its movement in time does. Speakers differ in the
level and range of every feature and in their natural tempo. Nothing is done for one training method: a
model from scratch sees the same segments and labels.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.signal import lfilter
from scipy.stats import norm

from jax_emossl.data import csd, prepared
from jax_emossl.data.corpora import Files, cache_dir
from jax_emossl.data.corpus import COVAREP_DIMENSIONS
from jax_emossl.errors import UserError

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
_VERSION = 2  # raise whenever the generated values change
_SEED = 2307
_FOLDS = {"train": 72, "valid": 24, "test": 24}
_SEGMENTS = 6  # labelled segments per recording
_RATE = 100  # frames per second
_OSCILLATIONS = 6
_NOISE = 0.5  # its deviation, the oscillations' being 1
_TEMPO = (0.6, 2.5)  # Hz, of the slowest and the fastest oscillation
_MEMORY = 1.5  # s for which an oscillation keeps its phase
_SPILL = 0.2  # size of the effects on the other oscillations
_EFFECT = 1.2  # of a full intensity on its oscillation, on the logarithm of tempo and memory
# Shares of segments with each emotion and their correlations, roughly CMU-MOSEI's.
_PREVALENCE = np.array([0.52, 0.26, 0.22, 0.11, 0.18, 0.09])
_CORRELATION = np.array(
    [
        [1.0, -0.4, -0.4, 0.2, -0.4, -0.2],
        [-0.4, 1.0, 0.2, 0.0, 0.2, 0.4],
        [-0.4, 0.2, 1.0, 0.0, 0.6, 0.2],
        [0.2, 0.0, 0.0, 1.0, 0.0, 0.2],
        [-0.4, 0.2, 0.6, 0.0, 1.0, 0.1],
        [-0.2, 0.4, 0.2, 0.2, 0.1, 1.0],
    ]
)


# A small model that is trained in minutes on two cores.
SETTINGS = {
    "data.stack": 0.08,  # s: 12.5 model steps a second
    "data.bucket_growth": 2.0,
    "model.width": 32,
    "model.layers": 2,
    "model.near": 0.16,  # s: its movement is slow
    "model.far": 0.64,  # s
    "pretrain.objective.ratio": 0.5,
    "pretrain.objective.span": 0.32,  # s
    "pretrain.train.steps": 600,
    "pretrain.train.eval_every": 150,
    "pretrain.train.crop": 3.84,  # s
    "finetune.train.steps": 120,
    "finetune.train.probe_steps": 40,
    "finetune.train.crop": 8.0,  # s: nearly all segments whole, since emotion lies in slow movement
}


def files() -> Files:
    """In the cache, where they are generated on first use."""
    folder = _folder()
    return Files(str(folder / "DEMO_COVAREP.csd"), str(folder / "DEMO_Labels.csd"), str(folder / "folds.json"), create=_create)


def _folder() -> Path:
    return cache_dir() / f"demo-files-{_VERSION}"


def _create() -> None:
    try:
        with prepared.new_folder(_folder(), overwrite=False) as folder:
            generate(folder)
    except UserError:
        if not _folder().is_dir():  # else another process was faster
            raise


def generate(folder: Path, folds: dict[str, int] = _FOLDS, seed: int = _SEED) -> None:
    """Writes features, labels and folds with the given number of recordings per fold."""
    world = np.random.default_rng(seed)
    ids = {fold: [f"demo_{fold}_{i:03d}" for i in range(number)] for fold, number in folds.items()}
    mixing = world.normal(size=(_OSCILLATIONS, len(COVAREP_DIMENSIONS))) * (world.random((_OSCILLATIONS, len(COVAREP_DIMENSIONS))) < 0.5)
    effects = world.normal(0, _SPILL, size=(2, len(EMOTIONS), _OSCILLATIONS)) + np.stack(
        [np.eye(len(EMOTIONS), _OSCILLATIONS, k) for k in (0, 1)]
    )
    recordings = [
        (recording, *_recording(np.random.default_rng((seed, i)), mixing, effects))
        for i, recording in enumerate(r for members in ids.values() for r in members)
    ]
    notice = {"dataset name": "jax_emossl demo", "computational sequence description": "synthetic, not speech", "synthetic": True}
    csd.write(
        folder / "DEMO_COVAREP.csd", "COVAREP",
        ((r, frames, intervals) for r, frames, intervals, _, _ in recordings),
        {"dimension names": list(COVAREP_DIMENSIONS), **notice},
    )  # fmt: skip
    csd.write(
        folder / "DEMO_Labels.csd", "All Labels",
        ((r, labels, spans) for r, _, _, labels, spans in recordings),
        {"dimension names": list(EMOTIONS), **notice},
    )  # fmt: skip
    (folder / "folds.json").write_text(json.dumps(ids, indent=1))


def _intensities(rng: np.random.Generator, number: int) -> Float[np.ndarray, "s 6"]:
    """Correlated intensities, mostly zero, in steps of 1/3."""
    latent = rng.multivariate_normal(np.zeros(len(EMOTIONS)), _CORRELATION, number) - norm.isf(_PREVALENCE)
    return np.where(latent > 0, np.clip(np.ceil(latent * 1.4 * 3) / 3, 0, 3), 0)


def _recording(rng: np.random.Generator, mixing, effects) -> Iterator[np.ndarray]:
    """Frames, their intervals, labels and labelled spans of one recording; every second stretch has no label."""
    duration = np.clip(rng.lognormal(np.log(4.0), 0.4, 2 * _SEGMENTS), 1.5, 9.0)
    duration[1::2] *= 0.5
    intensity = _intensities(rng, len(duration))
    lengths = np.round(duration * _RATE).astype(int)
    own_tempo = rng.normal(0, 0.15, _OSCILLATIONS)
    hidden = np.concatenate([_oscillations(rng, n, i, own_tempo, effects) for n, i in zip(lengths, intensity, strict=True)])
    frames = _covarep(rng, hidden, mixing)
    times = np.arange(len(frames) + 1) / _RATE
    bounds = np.concatenate([[0], np.cumsum(lengths)]) / _RATE
    spans = np.column_stack([bounds[:-1], bounds[1:]])[::2]
    return frames, np.column_stack([times[:-1], times[1:]]), intensity[::2].astype(np.float32), spans


def _oscillations(rng: np.random.Generator, length: int, intensity, own_tempo, effects) -> Float[np.ndarray, "n k"]:
    """Noise-driven oscillators of unit variance: emotion sets their tempo (Hz) and how long they keep it (s)."""
    shift = np.sqrt(intensity / 3) @ effects.transpose(1, 0, 2).reshape(len(EMOTIONS), -1)
    tempo = np.geomspace(*_TEMPO, _OSCILLATIONS) * np.exp(own_tempo + _EFFECT * shift[:_OSCILLATIONS])
    memory = _MEMORY * np.exp(_EFFECT * shift[_OSCILLATIONS:])
    decay = np.exp(-1 / (_RATE * np.clip(memory, 0.1, 3.0)))
    pole = decay * np.exp(2j * np.pi * np.clip(tempo, 0.3, 8.0) / _RATE)
    noise = rng.normal(size=(2, length, _OSCILLATIONS)).T @ np.array([1, 1j])
    start = rng.normal(size=(2, _OSCILLATIONS)).T @ np.array([1, 1j])
    return np.column_stack(
        [
            lfilter([np.sqrt(1 - d**2)], [1, -p], drive, zi=[p * first])[0].real
            for d, p, drive, first in zip(decay, pole, noise.reshape(_OSCILLATIONS, length), start, strict=True)
        ]
    )


def _covarep(rng: np.random.Generator, hidden: Float[np.ndarray, "n k"], mixing) -> Float[np.ndarray, "n 74"]:
    """Features of one speaker, with COVAREP's traits: F0 zero when unvoiced, -inf and NaN values."""
    width = len(COVAREP_DIMENSIONS)
    noise = _NOISE * lfilter([0.6], [1, -0.8], rng.normal(size=(len(hidden), width)), axis=0)
    level, spread = rng.normal(0, 0.5, width), rng.lognormal(0, 0.2, width)
    frames = level + spread * (hidden @ mixing / np.sqrt(_OSCILLATIONS / 2) + noise)
    voiced = lfilter([0.2], [1, -0.8], rng.normal(size=len(hidden))) > -0.15
    column = {name: i for i, name in enumerate(COVAREP_DIMENSIONS)}
    pitch = rng.uniform(90, 220) * np.exp(0.1 * (frames[:, column["F0"]] - level[column["F0"]]))
    frames[:, column["F0"]] = np.where(voiced, pitch, 0)
    frames[:, column["VUV"]] = voiced
    frames[rng.random(len(frames)) < 0.004, column["MCEP_0"]] = -np.inf
    frames[rng.random(len(frames)) < 0.004, column["Rd"]] = np.nan
    return frames.astype(np.float32)
