"""Pictures of predictions: emotions over time, as a figure and on a page that is looked at and listened to."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float

from jax_emossl.data import audio

Answers = tuple[Float[np.ndarray, "w 2"], Mapping[str, np.ndarray]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")  # Okabe & Ito's
_DASHES = ("", "7 3", "2 2", "9 3 2 3", "", "7 3", "2 2", "9 3 2 3")
_PLAYED = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".oga": "audio/ogg", ".opus": "audio/ogg"}
_COLUMNS = 1000  # of a waveform


def curves(answers: Answers) -> tuple[str, Float[np.ndarray, "w"], Float[np.ndarray, "w c"]]:
    """What is drawn over time: its name, the middle of every window (s), and its values."""
    spans, made = answers
    name = "mean" if "mean" in made else "probability"
    return {"mean": "mean intensity", "probability": "probability"}[name], spans.mean(1), made[name]


def figure(classes: Sequence[str], answers: Answers, title: str, path: Path) -> None:
    """Writes the curves of a recording as PNG."""
    import matplotlib  # here, since a page needs none

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    name, times, values = curves(answers)
    drawn, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for c, emotion in enumerate(classes):
        dashes = [float(n) for n in _DASHES[c % len(_DASHES)].split()]
        axes.plot(
            times, values[:, c], label=emotion, color=COLOURS[c % len(COLOURS)], linewidth=1.6,
            linestyle=(0, dashes) if dashes else "-", marker="o" if len(times) < 30 else "", markersize=3,
        )  # fmt: skip
    axes.set(xlabel="seconds (middle of the window)", ylabel=name, title=title, ylim=(0, None))
    axes.title.set_fontsize(9)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.savefig(path, dpi=140)
    plt.close(drawn)


def page(model: Any, said: Sequence[Any]) -> str:
    """One HTML page of all that is said of recordings; nothing in it is fetched from anywhere."""
    templates = jinja2.Environment(loader=jinja2.PackageLoader("jax_emossl"), autoescape=True, undefined=jinja2.StrictUndefined)
    recordings = [{"number": number} | _recording(model, own) for number, own in enumerate(said)]
    own = {"classes": model.classes, "colours": COLOURS, "dashes": _DASHES}
    return templates.get_template("predictions.html").render(card=model.card, recordings=recordings, **own)


def _recording(model: Any, own: Any) -> dict:
    name, times, values = curves(own.windows)
    spans, made = own.segments
    sound = own.source.suffix.lower() in audio.SUFFIXES
    shape, label = _waveform(own.source) if sound else _loudness(model, own.recording)
    what = "mean" if "mean" in made else "probability"
    rows = [
        {"start": start, "end": end, "cells": [(values[c], bool(made["present"][i, c])) for c in range(len(model.classes))]}
        for i, ((start, end), values) in enumerate(zip(spans.tolist(), made[what].tolist(), strict=True))
    ]
    data = {
        "begin": float(own.recording.intervals[0, 0]), "end": float(own.recording.intervals[:, 1].max()),
        "times": np.round(times, 3).tolist(), "values": np.round(values, 4).tolist(),
        "curve": name, "top": 3.0 if what == "mean" else 1.0, "shape": shape, "windows": np.round(own.windows[0], 3).tolist(),
    }  # fmt: skip
    return {
        "name": own.name,
        "curve": name,
        "shape_label": label,
        "audio": _player(own.source) if sound else "",
        "rows": rows,
        "data": data,
    }


def _envelope(values: Float[np.ndarray, "n"]) -> list[list[float]]:
    """The lowest and highest value of each of some hundred pieces."""
    pieces = np.array_split(values, min(_COLUMNS, len(values)))
    return [[round(float(piece.min()), 4), round(float(piece.max()), 4)] for piece in pieces]


def _waveform(path: Path) -> tuple[list[list[float]], str]:
    signal, _ = audio.read(path)
    return _envelope(signal / np.abs(signal).max()), "waveform"


def _loudness(model: Any, recording: Any) -> tuple[list[list[float]], str]:
    """The loudness among the features, as a band around 0; nothing where there is none."""
    found = [i for i, name in enumerate(model.card.frontend.names) if name.lower().startswith("loudness")]
    if not found:
        return [], ""
    loudness = np.nan_to_num(recording.frames[:, found[0]])
    top = np.array([high for _, high in _envelope(loudness / max(float(np.abs(loudness).max()), 1e-9))])
    return np.column_stack([-top, top]).round(4).tolist(), "loudness"


def _player(path: Path) -> str:
    """The sound as a data URL; what browsers do not play is put into WAV."""
    kind = _PLAYED.get(path.suffix.lower())
    if kind:
        content = path.read_bytes()
    else:
        import soundfile

        signal, rate = audio.read(path)
        soundfile.write(stream := io.BytesIO(), signal, rate, format="WAV")
        content, kind = stream.getvalue(), "audio/wav"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
