"""From audio to frames: `soundfile` reads, openSMILE describes. Both are imported when they are needed (`requirements-audio.txt`)."""

import contextlib
import dataclasses
import functools
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float

from jax_emossl.data import descriptors, folders
from jax_emossl.data.descriptors import Engine
from jax_emossl.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".opus", ".aif", ".aiff", ".au")
FEATURE_SETS = ("eGeMAPSv02", "ComParE_2016")  # of openSMILE
_LOWEST_RATE = 2_000  # Hz; with frames of hardly a sample, openSMILE writes where it must not
HOP = 0.01  # s, of their low-level descriptors
_LACKING = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be \d+\)")  # libsndfile's remark on bytes that are not there
_UNKNOWN_LENGTH = 0x7FFF0000  # bytes; programs that write to a pipe promise as many
_MISSING = 0.1  # s by which a file may be shorter than its header says
_QUIETEST, _LOUDEST = 2**-15, 1 - 2**-15  # that 16 bits hold
_BEYOND, _MOST_BEYOND = 0.01, 8.0  # of the samples that may be beyond full scale, and how far, before that is the scale's fault
_NO_LENGTH, _HEADER = re.compile(r"^data : 0$", re.MULTILINE), 4096  # libsndfile's remark, and bytes that a header hardly has


@contextlib.contextmanager
def _needed(name: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError) as error:  # OSError: soundfile without its C library
        raise UserError(f"Audio needs the package {name}, which is not installed here: pip install -r requirements-audio.txt.") from error


def files(folder: Path) -> list[Path]:
    """The audio files under a folder, by their suffixes, as `folders.files`; UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the folder of your recordings.")
    if not (found := folders.files(folder, SUFFIXES)):
        raise UserError(f"{folder} has no audio file ({', '.join(SUFFIXES)}): give the folder of your recordings.")
    return found


def read(path: Path) -> tuple[Float[np.ndarray, "n"], int]:
    """The mean of a file's channels, and its samples per second; UserError where it is damaged, or holds no sound."""
    with _needed("soundfile"):
        import soundfile
    try:
        with soundfile.SoundFile(path) as file:
            rate, promised, log = file.samplerate, file.frames, file.extra_info
            signal = file.read(dtype="float32", always_2d=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (soundfile.SoundFileError, RuntimeError, ValueError, MemoryError) as error:
        raise UserError(f"{path} is no audio file that can be read ({' '.join(str(error).split())}): convert or remove it.") from error
    lacking = any(int(promise) < _UNKNOWN_LENGTH for promise in _LACKING.findall(log))
    if lacking or promised - len(signal) > _MISSING * rate:
        raise UserError(f"{path} is shorter than its header says: it is truncated, fetch or record it anew.")
    if not len(signal) and _NO_LENGTH.search(log) and path.stat().st_size > _HEADER:
        raise UserError(f"{path} has no length in its header, as a recorder leaves it that was interrupted: mend the header.")
    if rate <= 0 or not len(signal):
        raise UserError(f"{path} holds no sound ({len(signal)} samples at {rate} Hz): remove it.")
    if not np.isfinite(signal).all():
        raise UserError(f"{path} has samples that are not numbers: convert it anew.")
    mixed = signal.mean(1)
    loudness = np.abs(mixed)
    if loudness.max() < _QUIETEST:
        quiet = "its channels cancel out" if np.abs(signal).max() >= _QUIETEST else "every sample is 0 in 16 bits"
        raise UserError(f"{path} is silent ({quiet}), so there is nothing to describe: remove it.")
    if loudness.max() > _MOST_BEYOND or np.mean(loudness > 1) > _BEYOND:
        raise UserError(f"{path} has samples that reach {loudness.max():.6g} where 1 is full scale: divide them, 16-bit numbers by 32768.")
    return mixed, rate


@dataclasses.dataclass(frozen=True)
class Extractor:
    """openSMILE's low-level descriptors of a feature set (Eyben et al. 2010); it travels with the features, and with what is trained on them.

    Threads may share it.
    """

    feature_set: str
    version: str
    _own: threading.local = dataclasses.field(default_factory=threading.local, init=False, repr=False, compare=False)

    @classmethod
    def installed(cls, feature_set: str = FEATURE_SETS[0]) -> Self:
        with _needed("opensmile"):
            return cls(feature_set, descriptors.package().__version__)

    @functools.cached_property
    def names(self) -> list[str]:
        """The descriptors, in the order of the columns."""
        return Engine(self.feature_set, 16_000).names

    def __call__(self, path: Path) -> Float[np.ndarray, "n f"]:
        """One frame every 10 ms of a file; UserError as of `read`, or where it is too short for a frame."""
        signal, rate = read(path)
        if rate < _LOWEST_RATE:
            raise UserError(
                f"{path} has {rate} samples per second where speech needs {_LOWEST_RATE} or more: convert it anew or remove it."
            )
        signal = np.clip(signal, -1, _LOUDEST)  # beyond, openSMILE's 16 bits would wrap around
        try:
            frames = self._engine(rate)(signal)
        except RuntimeError as error:
            self._own.__dict__.clear()  # an engine that has failed describes nothing more
            raise UserError(f"{path} cannot be described by openSMILE at {rate} Hz ({error}): convert or remove it.") from error
        if not len(frames):
            raise UserError(f"{path} lasts {len(signal) / rate:.3g} s, too short for a frame of openSMILE: remove it.")
        return frames

    def _engine(self, rate: int) -> Engine:
        """This thread's engine, which is kept while files have the same rate."""
        if getattr(self._own, "rate", None) != rate:
            self._own.engine, self._own.rate = Engine(self.feature_set, rate), rate
        return self._own.engine

    def to_json(self) -> dict[str, str]:
        return {"name": "opensmile", "feature_set": self.feature_set, "version": self.version}

    @classmethod
    def of(cls, encoded: dict, names: Sequence[str], source: object) -> Self:
        """The extractor that makes the features of a `source` anew, from what these keep of it or, where that is nothing, from their names.

        Raises UserError where that is none of ours.
        """
        sets = (
            [encoded["feature_set"]] if encoded.get("name") == "opensmile" and encoded.get("feature_set") in FEATURE_SETS else FEATURE_SETS
        )
        for own in map(cls.installed, sets):
            if own.names == list(names):
                return own
        raise UserError(
            f"{source} was trained on features that openSMILE's {' and '.join(FEATURE_SETS)} do not give: give features instead of audio."
        )
