"""A trained model for use: frames of anybody's recordings in, emotions or embeddings out.

    from jax_emossl import load_model
    model = load_model("runs/finetune")   # or a folder that jax_emossl.share wrote
    model(features)                       # (frames, F), as the model's corpus was encoded -> dict of arrays
    model.encode(features)["pooled"]      # one vector

No corpus and no TensorFlow are needed.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from jax_emossl import __version__, checkpoint, encoders, objectives, workdir
from jax_emossl.card import FILE, NOT_A_CARD, Card
from jax_emossl.data import align, normalisation
from jax_emossl.data.arrays import checked
from jax_emossl.data.batches import Segments, example
from jax_emossl.data.indices import padded_length
from jax_emossl.data.prepared import Corpus, Fold
from jax_emossl.data.statistics import Statistics, mark, voiced_frames
from jax_emossl.errors import UserError
from jax_emossl.objectives import Batch, LabelledObjective, Params, Variables
from jax_emossl.predictor import predict
from jax_emossl.representation import represent

Features = Float[np.ndarray, "n f"]
WEIGHTS, CONFIG, FORMAT = "model.safetensors", "config.json", 1
_SIZES = (32, 1.25)  # rows of a batch, and growth of padded lengths
_FOLD = "given"


class Recording(NamedTuple):
    """What is asked of a recording.

    Attributes:
      name: in messages.
      frames: (n, F) as its features were encoded.
      spans: (S, 2) seconds of the stretches that are answered for; None = the whole recording, as one.
      intervals: (n, 2) seconds of the frames, sorted by start; None = one after another from 0 s, as the model's own lie.
    """

    name: str
    frames: Features
    spans: Float[np.ndarray, "s 2"] | None = None
    intervals: Float[np.ndarray, "n 2"] | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder with or without a head; `card` says what it was trained on.

    Attributes:
      objective: the config fields of what its head learned, as they stand in a run's config.
      variables: parameters and constants of its best step (NumPy).
    """

    card: Card
    objective: dict
    variables: Variables

    @classmethod
    def of_run(cls, folder: Path) -> Self:
        """The best step of a training; UserError where the folder is none's."""
        card = Card.load(folder)
        best = checkpoint.load_best(folder)
        objective = workdir.read_config(folder).objective.to_dict()
        return cls(dataclasses.replace(card, calibration=best.calibration), objective, best.variables).checked(folder)

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """What `save` wrote; UserError where a file is missing or damaged."""
        try:
            table = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if table["format"] != FORMAT:
                raise UserError(f"{folder / CONFIG} has format {str(table['format'])[:20]!r} where {FORMAT} is read: share the model anew.")
            card, objective = Card.from_json(table["card"]), dict(table["objective"])
            variables = {"params": {}, "constants": {}} | _nested(load_file(folder / WEIGHTS))
        except (OSError, SafetensorError, *NOT_A_CARD) as error:
            raise UserError(
                f"{folder} is no model folder of this project, or damaged ({type(error).__name__}): share the model anew."
            ) from error
        return cls(card, objective, variables).checked(folder)

    def save(self, folder: Path) -> None:
        """Writes weights (`safetensors`: nothing in them is ever executed) and all that belongs to them."""
        table = {"format": FORMAT, "version": __version__, "card": self.card.to_json(), "objective": self.objective}
        (folder / CONFIG).write_text(json.dumps(table, indent=1, allow_nan=False), encoding="utf-8")
        weights = {name: np.ascontiguousarray(array) for name, array in _flat(self._kept).items()}
        (folder / WEIGHTS).write_bytes(save(weights))

    @property
    def _kept(self) -> Variables:
        """The variables without constants of recordings, and of the loss, but for what answers read."""
        read = {"overall": self.variables["constants"]["overall"]} if self.card.head else {}
        return {"params": self.variables["params"], "constants": read}

    def checked(self, source: Path) -> Self:
        """Itself; UserError where its parts do not belong together."""
        try:
            batch = example(self.card.frontend)
            if self.card.head:
                wanted = jax.eval_shape(lambda: self.trained.init(jax.random.key(0), batch))
                own = self.variables["params"]
            else:
                wanted = jax.eval_shape(lambda: self._encoder.init(jax.random.key(0), batch["features"], batch["num_steps"]))["params"]
                own = self.variables["params"]["encoder"]
            fits = checkpoint.shapes(own) == checkpoint.shapes(wanted)
            if fits and self.card.head:
                jax.eval_shape(lambda variables: self.answer(self._scores(variables, batch)), self.variables)
            finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves([self._kept, self.card.calibration]))
        except (*NOT_A_CARD, ArithmeticError, ImportError) as error:
            raise UserError(
                f"{source} does not describe a model of this version ({type(error).__name__}): train or share it anew."
            ) from error
        if not fits:
            raise UserError(f"{source} holds weights of other shapes than this version makes of its config: train or share it anew.")
        if not finite:
            raise UserError(f"{source} holds weights or a calibration that are not finite: train or share it anew.")
        return self

    def _scores(self, variables: Variables, batch: Batch) -> Float[Array, "1 c"]:
        """Of one row alone."""
        return self.trained.finish(variables, self.trained.predict(variables, batch), np.zeros((1, 3), np.int32))["scores"]

    @functools.cached_property
    def _encoder(self):
        return encoders.make(ml_collections.ConfigDict(self.card.model), 0.0, self.card.frontend)

    @functools.cached_property
    def trained(self) -> LabelledObjective:
        own = {name: getattr(self.card, name) for name in ("emotions", "head", "classes", "reference")}
        return objectives.restore(ml_collections.ConfigDict(self.objective), self._encoder, **own)

    @property
    def classes(self) -> tuple[str, ...]:
        """What the columns of its answers stand for: emotions or, of a category, neutral among them; none of a pretraining."""
        return self.card.classes

    @property
    def encoder_params(self) -> Params:
        return self.variables["params"]["encoder"]

    @property
    def normalised(self) -> str:
        """By what of itself a recording's features are normalised, in words, to follow "normalised"."""
        by, prior = self.card.frontend.by, self.card.frontend.prior
        if by == normalisation.RECORDING and prior < np.inf:
            return f"by the recording's own frames, n s of them with the weight n/(n + {prior:g}) against the training fold"
        return normalisation.words(by, "given", prior)

    def intervals(self, number: int) -> Float[np.ndarray, "n 2"]:
        """Seconds of so many frames, one after another."""
        start = self.card.frontend.frame_seconds * np.arange(number)
        return np.column_stack([start, start + self.card.frontend.frame_seconds])

    def __call__(self, features: Features | Sequence[Features]) -> dict[str, np.ndarray]:
        """What is said of a recording: arrays (C,) over `classes`, or (R, C) of several recordings.

        Intensities: `intensity` (median) and `mean` in [0, 3], `probability` that the emotion is there, and `present`. A category:
        `probability` and `present`, the likeliest. Always also `scores`, of which these are read.

        Args:
          features: (n, F) frames of a recording, its columns those of `card.frontend.names`, or a sequence of several recordings.
        """
        recordings, alone = _given(features)
        made = self.predict(recordings)
        return {name: values[0] for name, values in made.items()} if alone else made

    def encode(self, features: Features | Sequence[Features]) -> dict:
        """Embeddings of a recording: `pooled` (P,), mean and deviation of every layer, and `sequence` (T, W), the last layer's model steps.

        Of several recordings `pooled` is (R, P) and `sequence` a list.
        """
        recordings, alone = _given(features)
        segments = self._segments(recordings)
        pooled = represent(self._encoder, self.encoder_params, {_FOLD: segments}, *_SIZES)[_FOLD]
        sequence = [self._sequence(segments.steps(i)) for i in range(len(segments))]
        return {"pooled": pooled[0], "sequence": sequence[0]} if alone else {"pooled": pooled, "sequence": sequence}

    def _sequence(self, steps: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "t w"]:
        padded = np.zeros((1, padded_length(len(steps), _SIZES[1]), steps.shape[1]), np.float32)
        padded[0, : len(steps)] = steps
        return np.asarray(self._apply(self.encoder_params, padded, np.array([len(steps)], np.int32)))[0, : len(steps)]

    @functools.cached_property
    def _apply(self):
        return jax.jit(lambda params, features, num_steps: self._encoder.apply({"params": params}, features, num_steps).layers[-1])

    def predict(self, recordings: Sequence[Recording]) -> dict[str, np.ndarray]:
        """As `model(...)`, of all recordings' stretches one after another (S, C).

        Features of a recording are normalised by its own statistics, shrunk toward the training fold's by its seconds, and pooled
        representations by those of its other stretches, by their number; other recordings never matter.
        """
        if not self.card.head:
            raise UserError(f"This model was pretrained on {self.card.corpus} and has no head: fine-tune it, or use its encode.")
        segments = self._segments(recordings)
        (outputs,) = predict(self.trained, [self.variables], [segments], *_SIZES)
        return jax.device_get({"scores": outputs["scores"], **self.answer(outputs["scores"])})

    def answer(self, scores: Float[Array, "s c"]) -> dict[str, Array]:
        """What is read of the scores, see `__call__`."""
        return self.trained.answer(jnp.asarray(scores), self.card.calibration)

    def _segments(self, recordings: Sequence[Recording]) -> Segments:
        """The stretches as a fold's segments; UserError where frames do not fit the model or a stretch has none."""
        frontend, statistics, parts, names, spans = self.card.frontend, {}, [], [], []
        if frontend.enrolled:
            raise UserError(
                "This model is normalised by enrolment, which other recordings do not name: train it with data.normalise_by=recording, causal or none."
            )
        for i, recording in enumerate(recordings):
            frames = np.array(checked(np.asarray(recording.frames), recording.name))  # a copy, which is marked
            if frames.shape[1] != len(frontend.names):
                raise UserError(
                    f"{recording.name} has {frames.shape[1]} features where the model reads {len(frontend.names)}: encode it alike."
                )
            intervals = self.intervals(len(frames)) if recording.intervals is None else recording.intervals
            key = f"{i:09d}"
            mark(frames)
            statistics[key] = Statistics.of(frames, intervals, voiced_frames(frames, frontend.names))
            asked = np.array([[intervals[0, 0], intervals[:, 1].max()]]) if recording.spans is None else recording.spans
            for span, positions in zip(asked, align.overlapping(intervals, asked), strict=True):
                if not len(positions):
                    raise UserError(f"{recording.name} has no frame between {span[0]:g} s and {span[1]:g} s: correct the times.")
                parts.append(align.take(frames, positions))
                names.append(key)
                spans.append(span)
        if not parts:
            raise UserError("There is no recording to answer for: give the features of one, or of several.")
        labels = np.zeros((len(parts), len(self.card.emotions)), np.float32)
        offsets = np.cumsum([0, *map(len, parts)])
        fold = Fold(np.concatenate(parts), offsets, labels, names, np.arange(len(parts)), np.array(spans))
        corpus = Corpus(
            Path(),
            _FOLD,
            False,
            frontend.names,
            self.card.emotions,
            frontend.frame_seconds,
            frontend.train,
            statistics,
            (),
            {_FOLD: fold},
            {},
        )
        return Segments(corpus, [_FOLD], frontend, bool(self.card.head) and self.trained.reads_functionals)


def load_model(path: str | Path) -> Model:
    """The model of a training's workdir, or of a folder that `share` wrote; UserError where it is neither, or damaged."""
    folder = Path(path)
    if (folder / WEIGHTS).is_file():
        return Model.of_folder(folder)
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} holds no model: give the workdir of a training, or a folder that jax_emossl.share wrote.")
    return Model.of_run(folder)


def _given(features: Features | Sequence[Features]) -> tuple[list[Recording], bool]:
    """The recordings, and whether it is one alone: an array or table of any library, or a list of rows."""
    own = features if hasattr(features, "shape") else list(features)
    alone = hasattr(own, "shape") or (len(own) > 0 and np.ndim(own[0]) < 2)
    return [Recording("the features", frames) for frames in ([own] if alone else own)], alone


def _flat(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of nested dicts, under their joined names."""
    arrays = {}
    for name, value in tree.items():
        arrays |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: np.asarray(value)}
    return arrays


def _nested(arrays: dict[str, np.ndarray]) -> dict:
    """What `_flat` made flat."""
    tree: dict = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        functools.reduce(lambda inner, folder: inner.setdefault(folder, {}), folders, tree)[last] = array
    return tree
