"""Times the way from audio: encoding beside openSMILE's own Python package on the same files, and prediction on a minute of speech.

python -m experiments.bench_encode FOLDER [--run RUN] [--rounds 3]

Encoding reads, describes and keeps every file on one core; the package's `process_signal`, and our engine alone, get the signals already
read. Sides alternate, the medians of their processor seconds are compared, so that other programs on the machine matter little. With
--run also how many processor seconds a trained model takes for one minute of that speech, after start-up: the clock shows no more.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from jax_emossl import encode
from jax_emossl.data import audio
from jax_emossl.data.audio import Extractor
from jax_emossl.data.descriptors import Engine

_MINUTE = 60.0


def processor_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def encode_all(files: list[Path], extractor: Extractor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for i, path in enumerate(files):
            _, wrong = encode._encode(lambda _, path=path: extractor(path), path.name, Path(folder, f"{i}.npy"))
            assert not wrong, wrong


def times_real_time(files: list[Path], extractor: Extractor, rounds: int) -> dict[str, float]:
    """Seconds of speech per second of one core, by side."""
    import opensmile

    smile = opensmile.Smile(extractor.feature_set, opensmile.FeatureLevel.LowLevelDescriptors)
    signals = [audio.read(path) for path in files]
    engines = {rate: Engine(extractor.feature_set, rate) for _, rate in signals}
    sides = {
        "encode": lambda: encode_all(files, extractor),
        "reading_alone": lambda: [audio.read(path) for path in files],
        "engine_alone": lambda: [engines[rate](signal) for signal, rate in signals],
        "opensmile_package": lambda: [smile.process_signal(signal, rate) for signal, rate in signals],
    }
    encode_all(files[:2], extractor)  # start-up
    took = [{name: processor_seconds(work) for name, work in sides.items()} for _ in range(rounds)]
    speech = sum(len(signal) / rate for signal, rate in signals)
    return {name: speech / statistics.median(own[name] for own in took) for name in sides}


def seconds_of_prediction(run: str, signals: list[tuple[np.ndarray, int]], extractor: Extractor, rounds: int) -> dict[str, list[float]]:
    """Of describing one minute of speech, and of a model's answers on it: whole, and in windows of 4 s every second."""
    import soundfile

    from jax_emossl.model import Recording, load_model
    from jax_emossl.predict import answers

    rate = signals[0][1]
    minute = np.concatenate([signal for signal, _ in signals for _ in range(9)])[: round(_MINUTE * rate)]
    model, took = load_model(run), {"described": [], "predicted": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "minute.wav")
        soundfile.write(file, minute, rate)
        for _ in range(rounds + 1):  # the first compiles
            made = []
            took["described"].append(processor_seconds(lambda made=made: made.append(extractor(file))))
            asked = [("minute", file, Recording("minute", made[0]))]
            took["predicted"].append(processor_seconds(lambda asked=asked: answers(model, asked, 4.0, 1.0)))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", default="", help="workdir of a fine-tuning on such features")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    files, extractor = audio.files(args.folder), Extractor.installed()
    with threadpool_limits(1):
        speeds = times_real_time(files, extractor, args.rounds)
    found = {"files": len(files)} | {f"{name}_times_real_time": round(speed, 1) for name, speed in speeds.items()}
    found["encode_over_opensmile_package"] = round(speeds["encode"] / speeds["opensmile_package"], 3)
    if args.run:
        took = seconds_of_prediction(args.run, [audio.read(path) for path in files], extractor, args.rounds)
        found |= {f"minute_{name}_first": round(own[0], 3) for name, own in took.items()}
        found |= {f"minute_{name}": round(statistics.median(own[1:]), 3) for name, own in took.items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
