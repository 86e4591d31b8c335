"""From a config to the pieces of a training: corpus, frontend, objective, segments, and what it starts from."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import ml_collections
import numpy as np

from jax_emossl import checkpoint, encoders, mesh, objectives, processes, standards
from jax_emossl.card import Card
from jax_emossl.config import stretched
from jax_emossl.data import corpora, label_budget
from jax_emossl.data.batches import Segments, example
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import RECORDING, UNLABELLED, Corpus
from jax_emossl.errors import UserError, notice
from jax_emossl.loop import Member, run_keys
from jax_emossl.objectives import Batch, Objective, Params
from jax_emossl.optimizer import Rates

_DURATIONS = ("pool", "stack")  # of a model step, which an encoder is made for
_FREE = ("dtype", "remat")  # how a model is computed, not what it is: a fine-tuning may do it otherwise


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The pieces of one training.

    Attributes:
      encoder: parameters of the encoder it starts from; None for random ones.
      seen: recordings on which these were trained.
      judges: recordings by which their step was chosen.
      others: further corpora of a pretraining, each normalised toward its own training fold.
    """

    config: ml_collections.ConfigDict
    corpus: Corpus
    frontend: Frontend
    objective: Objective
    encoder: Params | None
    seen: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    others: tuple[tuple[Corpus, Frontend], ...] = ()

    @property
    def arm(self) -> str:
        """The run's name in results: `pretrain`, or the arm that it is one run of."""
        if not self.objective.labelled:
            return "pretrain"
        return "scratch" if self.encoder is None else "pretrained"

    @property
    def sources(self) -> tuple[tuple[Corpus, Frontend], ...]:
        return (self.corpus, self.frontend), *self.others

    @property
    def name(self) -> str:
        """Of its corpora, in results."""
        return "+".join(corpus.name for corpus, _ in self.sources)

    @property
    def synthetic(self) -> bool:
        return any(corpus.synthetic for corpus, _ in self.sources)

    @property
    def unit(self) -> str:
        """What is counted: speakers where all its corpora know them, videos or recordings."""
        units = {corpus.unit for corpus, _ in self.sources}
        return units.pop() if len(units) == 1 else RECORDING

    @property
    def sizes(self) -> tuple[int, float]:
        """Batch size and growth of padded lengths, as `predict` takes them."""
        return self.config.train.batch_size, self.config.data.bucket_growth

    def check_batches(self, members: int) -> None:
        """UserError where the devices cannot share the batches of so many trainings like this one."""
        train = self.config.train
        mesh.check_batch_size(train.batch_size, mesh.make(members), train.accumulate, self.objective.together)

    def check_alike(self) -> None:
        """UserError in all of several processes whose corpora differ."""
        processes.check_alike(lambda: {f"the corpus {corpus.name}": corpus.digest for corpus, _ in self.sources})

    def segments(self, *folds: str) -> Segments:
        """Those of some folds; a corpus may lack one. What serves as enrolment is left out of those that are held out."""
        sources = [(corpus, [fold for fold in folds if fold in corpus.folds], frontend) for corpus, frontend in self.sources]
        own = [Segments(*source, self.objective.reads_functionals) for source in sources]
        if "train" not in folds:
            own = [part.take(np.flatnonzero(~part.enrolled)) if part.enrolled.any() else part for part in own]
        return Segments.joined(own)

    def training_segments(self) -> Segments:
        """The training fold's segments within the label budget or, without labels, a share of them and of the unlabelled stretches."""
        config = self.config
        if self.objective.labelled:
            return self.segments("train").take(label_budget.choose(self.corpus.fold("train").labels, config.num_labels, config.seed))
        segments = self.segments("train", *([UNLABELLED] if config.train.unlabelled else []))
        order = np.random.default_rng(config.seed).permutation(len(segments))
        return segments.take(np.sort(order[: max(1, round(config.train.share * len(segments)))]))

    def crop_notice(self, train: Segments) -> str:
        """What there is to say of a `train.crop` that cuts no segment of the training fold."""
        crop, longest = self.config.train.crop, int(train.lengths.max())
        if not crop or self.frontend.steps(crop) < longest:
            return ""
        seconds = longest * self.frontend.frames_per_step * self.frontend.frame_seconds
        return f"train.crop is {crop:g} s, but no training segment of {self.name} is longer than {seconds:.2g} s: all are taken whole."

    def card(self) -> Card:
        seen = tuple(sorted({*self.seen, *(r for corpus, _ in self.sources for r in corpus.train_recordings)}))
        judges = tuple(sorted({*self.judges, *(r for corpus, _ in self.sources for r in corpus.fold("valid").recordings)}))
        extractor = dict(self.corpus.extractor)
        own = Card(self.config.model.to_dict(), self.frontend, self.name, self.corpus.emotions, seen, judges, extractor=extractor)
        if not self.objective.labelled:
            return own
        labels = self.config.num_labels or len(self.corpus.fold("train"))
        return dataclasses.replace(
            own, head=self.objective.head, classes=self.objective.classes, reference=self.objective.reference, num_labels=labels
        )

    def params(self) -> Params:
        """Initial parameters (NumPy), with the encoder it starts from."""
        params = jax.device_get(_init(self.objective, run_keys(self.config.seed)[0], example(self.frontend)))
        if self.encoder is not None and checkpoint.shapes(self.encoder) != checkpoint.shapes(params["encoder"]):
            raise UserError(
                f"{self.config.init_from} holds an encoder of other shapes than this config makes on {self.name}: pretrain anew."
            )
        return params if self.encoder is None else {**params, "encoder": self.encoder}

    def member(self, train: Segments, valid: Segments, background: Segments) -> Member:
        """This training, for `loop.fit`; the `background` is the training fold, of which labels are not read."""
        reference = standards.reference(train, background) if self.objective.labelled else None
        settings, params = self.config.train, self.params()
        crop = self.frontend.steps(settings.crop)
        folds = dict.fromkeys(fold for corpus, _ in self.sources for fold in corpus.folds)
        constants = {} if self.objective.labelled else self.objective.begin(params, self.segments(*folds))
        return Member(self.config.seed, train, valid, reference, params, Rates.make(settings), crop, constants)


@functools.partial(jax.jit, static_argnames="objective")
def _init(objective: Objective, key: jax.Array, batch: Batch) -> Params:
    return objective.init(key, batch)


def build(config: ml_collections.ConfigDict, corpus: Corpus | None = None) -> Experiment:
    """Loads what the config names, or takes a (first) `corpus` at hand; UserError where it contradicts a corpus or the checkpoint."""
    first, *rest = corpora.split(config.data)
    corpus = corpus or corpora.load(first)
    params, card = _transfer(config, corpus) if config.get("init_from") else (None, None)
    frontend = Frontend.make(config.data, corpus)
    objective = objectives.make(config.objective, encoders.make(config.model, config.train.dropout, frontend), frontend, corpus)
    others = tuple(_beside(corpus, frontend, corpora.load(own), config.data) for own in rest)
    if objective.labelled:
        if others:
            raise UserError(f"data.corpus is '{config.data.corpus}', but labels are learned of one corpus: name one, or run a comparison.")
        config.train = stretched(config.train, int(config.num_labels) or len(corpus.fold("train")))
    seen, judges = (card.recordings, card.judges) if card else ((), ())
    return Experiment(config, corpus, frontend, objective, params, seen, judges, others)


def _beside(first: Corpus, frontend: Frontend, corpus: Corpus, data: ml_collections.ConfigDict) -> tuple[Corpus, Frontend]:
    """A further corpus of a pretraining, with its frontend; UserError where it does not fit the first."""
    frontend.check_features(corpus.features, first.name, f"the corpus {corpus.name}")
    own = Frontend.make(data, corpus)
    if (own.pool, own.stack) != (frontend.pool, frontend.stack):
        raise UserError(
            f"A model step of {data.stack:g} s holds {own.frames_per_step} frames of {corpus.name}, but {frontend.frames_per_step} of "
            f"{first.name}: pretrain on features of one hop."
        )
    if twice := sorted(set(first.recordings) & set(corpus.recordings)):
        raise UserError(f"{first.name} and {corpus.name} both have a recording '{twice[0]}': give recordings names of their own.")
    return corpus, own


def _transfer(config: ml_collections.ConfigDict, corpus: Corpus) -> tuple[Params, Card]:
    """The encoder parameters of `config.init_from`, and its card; `config.data` takes over its durations.

    The statistics toward which features are normalised are not taken over: they are those of `corpus`.
    """
    source = Path(config.init_from)
    card = Card.load(source)
    for field, value in card.model.items():
        if field not in _FREE and config.model.get(field) != value:
            raise UserError(
                f"{source} has model.{field}={value} where the config has {config.model.get(field)}: give --config.model.{field}={value}."
            )
    check_held_out(card, corpus, source)
    own, settings = Frontend.make(config.data, corpus).settings(), card.frontend.settings()
    for field, value in settings.items():
        if not (own[field] == value or isinstance(value, float) and math.isclose(own[field], value)):
            how = "and takes the place of the config's" if field in _DURATIONS else "but the config's stands,"
            notice(f"data.{field}={value} is the checkpoint's {how} {config.data[field]}.")
    carry(card, {field: settings[field] for field in _DURATIONS}, config.data, corpus, source)
    if card.corpus != corpus.name:
        notice(
            f"features are normalised toward the training fold of {corpus.name}; the encoder was pretrained on {card.corpus}, toward its own."
        )
    return checkpoint.load_best(source).variables["params"]["encoder"], card


def carry(card: Card, settings: dict, data: ml_collections.ConfigDict, corpus: Corpus, source: Path) -> None:
    """Takes some of the settings of a run's frontend over into `data`, for a corpus.

    Raises UserError where the features differ, or so long a hop that a model step would have another number of them.
    """
    card.frontend.check_features(corpus.features, source)
    data.update(settings)
    frontend = Frontend.make(data, corpus)
    if frontend.dimension != card.frontend.dimension:
        raise UserError(
            f"{source} stacks {card.frontend.stack} frames in a model step of {data.stack:g} s where the corpus has "
            f"{frontend.stack}: pretrain on features of the corpus's hop, {corpus.frame_seconds:g} s."
        )


def require(corpus: Corpus, fold: str) -> None:
    """Refuses a corpus without this fold, which may be one to pretrain on alone."""
    if not len(corpus.fold(fold)):
        raise UserError(f"{corpus.name} has no labelled segment with frames in fold '{fold}': check the ids in the folds file.")


def check_held_out(card: Card, corpus: Corpus, source: Path) -> None:
    """Refuses folds that hold out a recording on which the encoder of `source` was trained, or test one that chose its step."""
    valid, test = ({*corpus.folds[fold].recordings} if fold in corpus.folds else set() for fold in ("valid", "test"))
    for seen, held_out, how in ((card.recordings, valid | test, "was trained on"), (card.judges, test, "chose its step by")):
        if leaked := sorted(held_out & set(seen)):
            others = "" if card.corpus == corpus.name else ", or give recordings names of their own if these are other people"
            raise UserError(
                f"{source} {how} recording '{leaked[0]}', which these folds hold out: pretrain on the training fold of the same folds{others}."
            )
