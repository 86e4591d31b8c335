"""From a config to the pieces of a training: corpus, frontend, objective, segments, and what it starts from."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import ml_collections
import numpy as np

from jax_emossl import checkpoint, encoders, objectives, standards
from jax_emossl.card import Card
from jax_emossl.data import corpora, label_budget
from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import UNLABELLED, Corpus
from jax_emossl.errors import UserError, notice
from jax_emossl.loop import Member, run_keys
from jax_emossl.objectives import Objective, Params
from jax_emossl.optimizer import Rates


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The pieces of one training.

    Attributes:
      encoder: parameters of the encoder it starts from; None for random ones.
      seen: recordings on which these were trained.
    """

    config: ml_collections.ConfigDict
    corpus: Corpus
    frontend: Frontend
    objective: Objective
    encoder: Params | None
    seen: tuple[str, ...] = ()

    @property
    def arm(self) -> str:
        """The run's name in results: `pretrain`, or the arm that it is one run of."""
        if not self.objective.labelled:
            return "pretrain"
        return "scratch" if self.encoder is None else "pretrained"

    @property
    def sizes(self) -> tuple[int, float]:
        """Batch size and growth of padded lengths, as `predict` takes them."""
        return self.config.train.batch_size, self.config.data.bucket_growth

    def segments(self, fold: str) -> Segments:
        return Segments(self.corpus, [fold], self.frontend)

    def training_segments(self) -> Segments:
        """The training fold's segments within the label budget or, without labels, a share of them and of the unlabelled stretches."""
        config = self.config
        if self.objective.labelled:
            return self.segments("train").take(label_budget.choose(self.corpus.fold("train").labels, config.num_labels, config.seed))
        unlabelled = [UNLABELLED] if config.train.unlabelled and UNLABELLED in self.corpus.folds else []
        segments = Segments(self.corpus, ["train", *unlabelled], self.frontend)
        order = np.random.default_rng(config.seed).permutation(len(segments))
        return segments.take(np.sort(order[: max(1, round(config.train.share * len(segments)))]))

    def card(self) -> Card:
        seen = tuple(sorted({*self.seen, *self.corpus.train_recordings}))
        own = Card(self.config.model.to_dict(), self.frontend, self.corpus.name, self.corpus.emotions, seen)
        if not self.objective.labelled:
            return own
        labels = self.config.num_labels or len(self.corpus.fold("train"))
        return dataclasses.replace(own, head=self.objective.head, classes=self.objective.classes, num_labels=labels)

    def params(self) -> Params:
        """Initial parameters (NumPy), with the encoder it starts from."""
        params = jax.device_get(_init(self.objective, run_keys(self.config.seed)[0], self.frontend.dimension))
        return params if self.encoder is None else {**params, "encoder": self.encoder}

    def member(self, train: Segments, valid: Segments, background: Segments) -> Member:
        """This training, for `loop.fit`; the `background` is the training fold, of which labels are not read."""
        reference = standards.reference(train, background) if self.objective.labelled else None
        settings = self.config.train
        crop = self.frontend.steps(settings.crop)
        return Member(self.config.seed, train, valid, reference, self.params(), Rates.make(settings), crop)


@functools.partial(jax.jit, static_argnames=("objective", "dimension"))
def _init(objective: Objective, key: jax.Array, dimension: int) -> Params:
    example = {"features": np.zeros((1, 2, dimension), np.float32), "num_steps": np.full(1, 2, np.int32)}
    return objective.init(key, example)


def build(config: ml_collections.ConfigDict, corpus: Corpus | None = None, frontend: Frontend | None = None) -> Experiment:
    """Loads what the config names, or takes a `corpus` or `frontend` at hand; UserError where it contradicts the corpus or checkpoint."""
    corpus = corpus or corpora.load(config.data)
    params, seen = None, ()
    if config.get("init_from"):
        frontend, params, seen = _transfer(config, corpus)
    frontend = frontend or Frontend.make(config.data, corpus)
    encoder = encoders.make(config.model, config.train.dropout)
    return Experiment(config, corpus, frontend, objectives.make(config.objective, encoder, frontend, corpus), params, seen)


def _transfer(config: ml_collections.ConfigDict, corpus: Corpus) -> tuple[Frontend, Params, tuple[str, ...]]:
    """The frontend and the encoder parameters of `config.init_from`, and nothing else of it; and what they have seen."""
    source = Path(config.init_from)
    card = Card.load(source)
    frontend = carried(card, corpus, source)
    for field, value in card.model.items():
        if config.model.get(field) != value:
            raise UserError(
                f"{source} has model.{field}={value} where the config has {config.model.get(field)}: give --config.model.{field}={value}."
            )
    check_held_out(card, corpus, source)
    own, settings = Frontend.make(config.data, corpus).settings(), card.frontend.settings()
    for field, value in settings.items():
        if not math.isclose(own[field], value):
            notice(f"data.{field}={value:g} is the checkpoint's and takes the place of the config's {config.data[field]:g}.")
    config.data.update(settings)
    return frontend, checkpoint.load_best(source).variables["params"]["encoder"], card.recordings


def carried(card: Card, corpus: Corpus, source: Path) -> Frontend:
    """The frontend of a run on another corpus: the same durations in frames of that corpus's hop, and the run's own statistics.

    Raises UserError where the features differ, or so long a hop that a model step would have another number of them.
    """
    card.frontend.check_features(corpus.features, source)
    settings = card.frontend.settings()
    frontend = dataclasses.replace(Frontend.make(ml_collections.ConfigDict(settings), corpus), train=card.frontend.train)
    if frontend.dimension != card.frontend.dimension:
        raise UserError(
            f"{source} stacks {card.frontend.stack} frames in a model step of {settings['stack']:g} s where the corpus has "
            f"{frontend.stack}: pretrain on features of the corpus's hop, {corpus.frame_seconds:g} s."
        )
    return frontend


def check_held_out(card: Card, corpus: Corpus, source: Path) -> None:
    """Refuses folds that hold out a recording on which the encoder of `source` was trained."""
    held_out = {r for fold in ("valid", "test") for r in corpus.fold(fold).recordings}
    leaked = sorted(held_out & set(card.recordings))
    if leaked:
        raise UserError(
            f"{source} was trained on recording '{leaked[0]}', which these folds hold out: pretrain on the training fold of the same folds."
        )
