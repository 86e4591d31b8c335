"""From a config to the pieces of a run: corpus, frontend, objective, segments, and the encoder to start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ml_collections
import numpy as np

from jax_emossl import checkpoint, mesh, objectives
from jax_emossl.checkpoint import EncoderCard
from jax_emossl.data import corpora, label_budget
from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import UNLABELLED, Corpus
from jax_emossl.errors import UserError, notice
from jax_emossl.model import TransformerEncoder
from jax_emossl.objectives import Objective, Params
from jax_emossl.optimizer import STRATEGIES

_ANY = float("inf")
_RANGES = {
    "data.norm_prior": (0, _ANY),
    "data.clip": (1e-3, 1e6),
    "data.pool": (1, 10_000),
    "data.stack": (1, 10_000),
    "data.bucket_growth": (1.01, 100),
    "model.width": (1, _ANY),
    "model.layers": (1, _ANY),
    "model.heads": (1, _ANY),
    "train.share": (0, 1),
    "train.dropout": (0, 0.99),
    "train.crop": (0, _ANY),
    "train.steps": (1, 2**31 - 1),
    "train.learning_rate": (0, 1e30),
    "train.encoder_factor": (0, 1e6),
    "train.probe_steps": (0, 2**31 - 1),
    "train.warmup_steps": (0, 2**31 - 1),
    "train.weight_decay": (0, 1e6),
    "train.b2": (0, 1),
    "train.clip_norm": (1e-9, _ANY),
    "train.eval_every": (1, _ANY),
    "train.patience": (0, _ANY),
    "train.log_every": (1, _ANY),
}
_FRONTEND_FIELDS = {"norm_prior": "prior", "clip": "clip", "pool": "pool", "stack": "stack"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The pieces of one run; `encoder` holds the parameters it starts from, None for random ones."""

    config: ml_collections.ConfigDict
    corpus: Corpus
    frontend: Frontend
    objective: Objective
    encoder: Params | None
    seen: tuple[str, ...] = ()  # recordings on which `encoder` was trained

    @property
    def arm(self) -> str:
        """The run's name in results (see `results.ARMS`)."""
        if self.config.objective.name != "emotion":
            return "pretrain"
        if self.encoder is None:
            return "scratch"
        return "frozen" if self.config.train.strategy == "frozen" else "pretrained"

    @property
    def classes(self) -> tuple[str, ...]:
        """What the head answers; empty for a pretraining."""
        return getattr(self.objective, "classes", ())

    def training_segments(self) -> Segments:
        """The training fold's segments within the label budget, and the unlabelled stretches where asked for."""
        if self.config.train.unlabelled:
            folds = ["train", *([UNLABELLED] if UNLABELLED in self.corpus.folds else [])]
            segments = Segments(self.corpus, folds, self.frontend)
            order = np.random.default_rng(self.config.seed).permutation(len(segments))
            return segments.take(np.sort(order[: max(1, round(self.config.train.share * len(segments)))]))
        subset = label_budget.choose(self.corpus.fold("train").labels, self.config.num_labels, self.config.seed)
        return self.segments("train").take(subset)

    def segments(self, fold: str) -> Segments:
        return Segments(self.corpus, [fold], self.frontend)

    def card(self) -> EncoderCard:
        seen = tuple(sorted({*self.seen, *self.corpus.train_recordings}))
        return EncoderCard(self.config.model.to_dict(), self.frontend, self.corpus.name, self.corpus.emotions, seen, self.classes)


def build(config: ml_collections.ConfigDict, corpus: Corpus | None = None, frontend: Frontend | None = None) -> Experiment:
    """Loads what the config names; a `corpus` or `frontend` at hand takes the place of the config's.

    Raises:
      UserError: the config contradicts itself, the corpus or the checkpoint.
    """
    _check(config)
    corpus = corpus or corpora.load(config.data)
    model = config.model
    encoder = TransformerEncoder(model.width, model.layers, model.heads, config.train.dropout)
    params, seen = None, ()
    if config.init_from:
        frontend, params, seen = _transfer(config, corpus)
    elif frontend is None:
        frontend = _new_frontend(config.data, corpus)
    objective = objectives.make(config.objective, corpus, encoder, frontend.dimension)
    return Experiment(config, corpus, frontend, objective, params, seen)


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses fields out of range, before anything is opened."""
    if config.init_from == "REQUIRED":
        raise UserError("init_from is not given: name the workdir of a pretraining with --config.init_from=DIR.")
    mesh.check_batch_size(config.train.batch_size)
    objectives.check_choice("train.strategy", config.train.strategy, STRATEGIES)
    if config.train.unlabelled and (config.num_labels or config.objective.name == "emotion"):
        raise UserError("train.unlabelled is for training without labels: set it to False to train on emotion labels.")
    for name, (low, high) in _RANGES.items():
        group, field = name.split(".")
        value = config[group].get(field)
        if value is not None and not low <= value <= high:
            raise UserError(f"{name} is {value}, but must lie between {low:g} and {high:g}.")
    if config.train.share < 1 and not config.train.unlabelled:
        raise UserError("train.share is for training without labels: set num_labels to train on fewer labels.")
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}, but must be 0 or more.")
    model = config.model
    if model.width % (2 * model.heads):
        raise UserError(f"model.width is {model.width}, but must be a positive multiple of twice the {model.heads} heads.")


def _new_frontend(data: ml_collections.ConfigDict, corpus: Corpus) -> Frontend:
    return Frontend(corpus.features, corpus.train_statistics, data.norm_prior, data.clip, data.pool, data.stack)


def _transfer(config: ml_collections.ConfigDict, corpus: Corpus) -> tuple[Frontend, Params, tuple[str, ...]]:
    """The frontend and the encoder parameters of `config.init_from`, and nothing else of it; and what they have seen."""
    source = Path(config.init_from)
    card = EncoderCard.load(source)
    card.frontend.check_features(corpus.features, source)
    for field, value in card.model.items():
        if config.model.get(field) != value:
            raise UserError(
                f"{source} has model.{field}={value} where the config has {config.model.get(field)}: give --config.model.{field}={value}."
            )
    check_held_out(card, corpus, source)
    for field, attribute in _FRONTEND_FIELDS.items():
        value = getattr(card.frontend, attribute)
        if config.data[field] != value:
            notice(f"data.{field}={value} is the checkpoint's and takes the place of the config's {config.data[field]}.")
            config.data[field] = value
    _, params = checkpoint.load_best_params(source)
    return card.frontend, params["encoder"], card.recordings


def check_held_out(card: EncoderCard, corpus: Corpus, source: Path) -> None:
    """Refuses folds that hold out a recording on which the encoder of `source` was trained."""
    held_out = {r for fold in ("valid", "test") for r in corpus.fold(fold).recordings}
    leaked = sorted(held_out & set(card.recordings))
    if leaked:
        raise UserError(
            f"{source} was trained on recording '{leaked[0]}', which these folds hold out: pretrain on the training fold of the same folds."
        )
