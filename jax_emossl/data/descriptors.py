"""openSMILE's engine, asked for the low-level descriptors of one signal after another.

The package `opensmile` starts an engine for every signal and runs all of a feature set's components, functionals among them. Here one
engine describes many signals, and its configuration is the installed one without the components that no descriptor is made of. The
numbers are those of `opensmile.Smile(...).process_signal`, to the bit.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import re
import tempfile
import weakref
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float

_SECTION = re.compile(r"^\s*\[(\w+):(\w+)\].*$", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/|^\s*(?://|[;#%])[^\n]*", re.MULTILINE | re.DOTALL)
_INCLUDED = re.compile(r"\\\{([^\\{}]+)\}")
_FILE_OPTION = re.compile(r"\\\{\\cm\[(\w+)\{([^{}?]+)\}")  # a file to include unless an option names another
_LEVELS = re.compile(r"^\s*\w*(reader|writer)\d?\.dmLevel\s*=(.*)$", re.MULTILINE)


def package() -> ModuleType:
    """The package `opensmile`, to be taken from here. ImportError where it is not installed.

    Its C library has a function `rdft`, as TensorFlow's has, which takes doubles; whichever a process loads first serves both and breaks
    the other's memory. So openSMILE's is loaded such that it calls its own.
    """
    if hasattr(os, "RTLD_DEEPBIND"):  # elsewhere than on Linux, libraries keep their functions apart by themselves
        found = importlib.util.find_spec("opensmile")
        for library in Path(found.origin).parent.glob("core/bin/*/libSMILEapi.so") if found else ():
            with contextlib.suppress(OSError):  # made for another machine
                ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_DEEPBIND)
    import opensmile

    return opensmile


class Engine:
    """Describes signals of one rate, one after another, by a feature set. A thread needs its own.

    Attributes:
      names: of the descriptors, in the order of the columns.
    """

    def __init__(self, feature_set: str, rate: int):
        """RuntimeError where openSMILE does not describe signals of so many samples per second."""
        lib = package().core.lib
        text, options = _configuration(feature_set)
        self._errors, self._engine, self._frames = lib.OpenSmileException, lib.OpenSMILE(), []
        weakref.finalize(self, self._engine.free)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "descriptors.conf")
            file.write_text(text, encoding="latin-1")
            self._do(self._engine.initialize, str(file), options | {"sampleRate": rate, "nBits": 16})
        frames = self._frames  # not `self`, which would never be freed

        def keep(values, number, _):
            frames.append(ctypes.string_at(values, 4 * number))
            return 1

        number = self._engine.external_sink_get_num_elements("extsink")
        self.names = [self._engine.external_sink_get_element_name("extsink", i) for i in range(number)]
        self._keep = lib.ExternalSinkCallback(keep)
        self._listen = functools.partial(lib.smileapi.smile_extsink_set_data_callback, self._engine._smileobj, b"extsink", self._keep, None)

    def __call__(self, signal: Float[np.ndarray, "n"]) -> Float[np.ndarray, "t f"]:
        """The frames of a signal in [-1, 1); none where it is too short for one. RuntimeError where openSMILE fails: take a new engine."""
        self._frames.clear()
        self._listen()  # what listened before a reset does not after it
        samples = (signal * 32768).astype(np.int16).tobytes()
        self._do(self._engine.external_audio_source_write_data, "extsource", samples)
        self._do(self._engine.external_audio_source_set_eoi, "extsource")
        self._do(self._engine.run)
        self._do(self._engine.reset)
        return np.frombuffer(b"".join(self._frames), np.float32).reshape(-1, len(self.names))

    def _do(self, call, *arguments):
        try:
            call(*arguments)
        except self._errors as error:
            raise RuntimeError(str(error)) from error


@functools.cache
def _configuration(feature_set: str) -> tuple[str, dict[str, str]]:
    """openSMILE's configuration of a feature set, down to its descriptors; and its options."""
    opensmile = package()
    root = Path(opensmile.__file__).parent / "core" / opensmile.config.CONFIG_ROOT
    level = opensmile.FeatureLevel.LowLevelDescriptors.value
    text, options = _read(root / (opensmile.FeatureSet[feature_set].value + opensmile.config.CONFIG_EXT))
    _, *parts = _SECTION.split(text)
    sections = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
    needed = _makers(sections, level)
    instances = [f"instance[{name}].type={kind}" for name, kind in {"dataMemory": "cDataMemory", **needed}.items()]
    source, sink = root / opensmile.config.EXTERNAL_INPUT_CONFIG, root / opensmile.config.EXTERNAL_OUTPUT_SINGLE_CONFIG
    kept = [f"[{name}:{kind}]{body}" for name, kind, body in sections if name in needed]
    parts = ["[componentInstances:cComponentManager]", *instances, rf"\{{{source}}}", *kept, rf"\{{{sink}}}", ""]
    return "\n".join(parts), options | {"sinkLevel": level}


def _read(path: Path) -> tuple[str, dict[str, str]]:
    """A configuration with all that it includes, and the files that its options stand for."""
    text, options = _COMMENT.sub("", path.read_text(encoding="latin-1")), {}
    for name, default in _FILE_OPTION.findall(text):
        options[name] = str((path.parent / default).resolve())

    def included(match: re.Match) -> str:
        inner, more = _read(path.parent / match[1])
        options.update(more)
        return inner

    return _INCLUDED.sub(included, text), options


def _makers(sections: list[tuple[str, str, str]], level: str) -> dict[str, str]:
    """The components, and their types, that a level is made by, directly or not."""
    reads, writer = {}, {}
    for name, _, body in sections:
        for kind, levels in _LEVELS.findall(body):
            for own in map(str.strip, levels.split(";")):
                if kind == "writer":
                    writer[own] = name
                else:
                    reads.setdefault(name, []).append(own)
    needed, wanted = set(), [level]
    while wanted:
        maker = writer.get(wanted.pop())  # the signal's own level has none
        if maker and maker not in needed:
            needed.add(maker)
            wanted += reads[maker]
    return {name: kind for name, kind, _ in sections if name in needed}
