"""Pictures of predictions: emotions over time, as a figure and on a page that is looked at and listened to."""

import base64
import io
import math
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
CURVES = {"mean": "mean intensity", "probability": "probability"}  # what is shown, the first that there is
_COLUMNS = 1000  # of a waveform


def curves(answers: Answers) -> tuple[str, Float[np.ndarray, "w"], Float[np.ndarray, "w c"]]:
    """What is drawn over time: its name in the answers, the middle of every window (s), and its values."""
    spans, made = answers
    name = next(name for name in CURVES if name in made)
    return name, spans.mean(1), made[name]


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
    axes.set(xlabel="seconds (middle of the window)", ylabel=CURVES[name], ylim=(0, None))
    axes.set_title(title, fontsize=9)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    for text in (axes.title, *legend.get_texts()):
        text.set_parse_math(False)  # a dollar sign in a name is one
    axes.spines[["top", "right"]].set_visible(False)
    drawn.savefig(path, dpi=140)
    plt.close(drawn)


def page(model: Any, said: Sequence[Any]) -> str:
    """One HTML page of all that is said of recordings; nothing in it is fetched from anywhere."""
    templates = jinja2.Environment(loader=jinja2.PackageLoader("jax_emossl"), autoescape=True, undefined=jinja2.StrictUndefined)
    recordings = [{"number": number} | _recording(model, own) for number, own in enumerate(said)]
    highest = max(float(curves(own.windows)[2].max()) for own in said)
    shared = {"classes": model.classes, "colours": COLOURS, "dashes": _DASHES, "top": max(0.2, math.ceil(5 * highest) / 5)}
    return templates.get_template("predictions.html").render(card=model.card, normalised=model.normalised, recordings=recordings, **shared)


def _recording(model: Any, own: Any) -> dict:
    name, times, values = curves(own.windows)
    spans, made = own.segments
    sound = own.source.suffix.lower() in audio.SUFFIXES
    shape, label = _waveform(own.source) if sound else _loudness(model, own.recording)
    rows = [
        {"start": start, "end": end, "cells": list(zip(said, present, strict=True))}
        for (start, end), said, present in zip(spans.tolist(), made[name].tolist(), made["present"].tolist(), strict=True)
    ]
    data = {
        "begin": float(own.recording.intervals[0, 0]), "end": float(own.recording.intervals[:, 1].max()),
        "times": np.round(times, 3).tolist(), "values": np.round(values, 4).tolist(), "curve": CURVES[name],
        "shape": shape, "windows": np.round(own.windows[0], 3).tolist(),
    }  # fmt: skip
    player = _player(own.source) if sound else ""
    return {"name": own.name, "curve": CURVES[name], "shape_label": label, "audio": player, "rows": rows, "data": data}


def _envelope(values: Float[np.ndarray, "n"]) -> list[list[float]]:
    """The lowest and highest value of each of some hundred pieces."""
    pieces = np.array_split(values, min(_COLUMNS, len(values)))
    return [[round(float(piece.min()), 4), round(float(piece.max()), 4)] for piece in pieces]


def _waveform(path: Path) -> tuple[list[list[float]], str]:
    signal, _ = audio.read(path)
    return _envelope(signal / np.abs(signal).max()), "waveform"


def _loudness(model: Any, recording: Any) -> tuple[list[list[float]], str]:
    """The loudness among the features, as a band around 0 over the recording's time; nothing where there is none."""
    found = [i for i, name in enumerate(model.card.frontend.names) if name.lower().startswith("loudness")]
    if not found:
        return [], ""
    loudness, intervals = np.nan_to_num(recording.frames[:, found[0]]), recording.intervals
    begin, end = intervals[0, 0], intervals[:, 1].max()
    pieces = min(_COLUMNS, len(loudness))
    piece = (pieces * (intervals.mean(1) - begin) / max(end - begin, 1e-9)).astype(int).clip(0, pieces - 1)
    top = np.zeros(pieces)  # also where the recording has no frames
    np.maximum.at(top, piece, loudness / max(float(np.abs(loudness).max()), 1e-9))
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
