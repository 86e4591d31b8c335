"""Times the way from audio: encoding beside openSMILE's own command on the same files, and prediction on a minute of speech.

python -m experiments.bench_encode FOLDER [--run RUN] [--rounds 3]

Encoding reads, describes and keeps every file in one process, on one core; openSMILE alone gets the signals already read. Sides
alternate, medians are compared. With --run also how long a trained model takes for one minute of that speech, after start-up.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from jax_emossl import encode
from jax_emossl.data import audio
from jax_emossl.data.audio import Extractor

_MINUTE = 60.0


def seconds_of_encoding(files: list[Path], extractor: Extractor) -> float:
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for i, path in enumerate(files):
            _, wrong = encode._encode(lambda _, path=path: extractor(path), path.name, Path(folder, f"{i}.npy"))
            assert not wrong, wrong
    return time.perf_counter() - begun


def seconds_of_opensmile(signals: list[tuple[np.ndarray, int]], extractor: Extractor) -> float:
    begun = time.perf_counter()
    for signal, rate in signals:
        extractor._smile.process_signal(signal, rate)
    return time.perf_counter() - begun


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
            begun = time.perf_counter()
            frames = extractor(file)
            described = time.perf_counter()
            answers(model, [("minute", file, Recording("minute", frames))], 4.0, 1.0)
            took["described"].append(described - begun)
            took["predicted"].append(time.perf_counter() - described)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", default="", help="workdir of a fine-tuning on such features")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    files, extractor = audio.files(args.folder), Extractor.installed()
    signals = [audio.read(path) for path in files]
    speech = sum(len(signal) / rate for signal, rate in signals)
    with threadpool_limits(1):
        seconds_of_opensmile(signals[:2], extractor)  # start-up
        pairs = [(seconds_of_encoding(files, extractor), seconds_of_opensmile(signals, extractor)) for _ in range(args.rounds)]
    ours, alone = (statistics.median(own) for own in zip(*pairs, strict=True))
    found = {
        "files": len(files), "seconds_of_speech": round(speech, 1), "encode_times_real_time": round(speech / ours, 1),
        "opensmile_times_real_time": round(speech / alone, 1), "ratio": round(alone / ours, 3),
    }  # fmt: skip
    if args.run:
        took = seconds_of_prediction(args.run, signals, extractor, args.rounds)
        found |= {f"minute_{name}_first": round(own[0], 3) for name, own in took.items()}
        found |= {f"minute_{name}": round(statistics.median(own[1:]), 3) for name, own in took.items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
