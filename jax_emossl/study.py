"""One variant of a comparison on one rotation of the folds: its data, its vectors, and the cells that arms answer."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import ml_collections
import numpy as np
from jaxtyping import Float, Int
from sklearn.decomposition import PCA

from jax_emossl import standards
from jax_emossl.config import part, stretched
from jax_emossl.data import label_budget
from jax_emossl.data.batches import Segments
from jax_emossl.experiment import Experiment
from jax_emossl.objectives import Params
from jax_emossl.representation import represent
from jax_emossl.resident import Resident

_COMPONENTS = 64


class Cell(NamedTuple):
    """One point of a comparison; `budget` is the label count asked for: below 1 a share of the fold, 0 all labels."""

    arm: str
    budget: float
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What an arm says in a cell.

    Attributes:
      scores: of the reported fold's segments; None where that is not asked.
      valid: of the validation fold's.
      step: at which its encoder was taken; None for one that is not trained.
      value: of the selection metric on the validation fold, where `calibration` was chosen.
      details: what else validation chose, for the row's `selection`.
      evaluations: of each of the trainings behind it, the steps that were validated, with the value of each.
    """

    scores: Float[np.ndarray, "s c"] | None
    valid: Float[np.ndarray, "v c"]
    step: int | None
    value: float
    calibration: Any
    details: dict
    evaluations: Sequence[Sequence[tuple[int, float]]] = ()


def num_labels(budget: float, available: int) -> int:
    """Labelled segments behind a budget."""
    return max(1, round(budget * available)) if 0 < budget < 1 else int(budget) or available


def budgets_within(counts: Sequence[float], available: int) -> list[float]:
    """The label counts asked for, each once, without those beyond the fold and a number that 0, all, asks for already."""
    known = [budget for budget in dict.fromkeys(counts) if num_labels(budget, available) <= available]
    return [budget for budget in known if not (budget == available and 0 in known)]


@dataclasses.dataclass(frozen=True)
class Study:
    """What all arms of one variant and rotation share; everything that is made once is made here.

    Attributes:
      config: the comparison's, of this variant and rotation.
      experiment: of its fine-tunings, which start from `pretrained`.
      pretrained: parameters of the pretrained encoders; none where no arm reads them.
      segments: of the folds that take part.
      encoded: what encoders make of segments, by source and seed, then by fold; an encoder reads a fold once.
      known: vectors by source and seed.
      read: what was read out of them linearly, by all that matters.
    """

    config: ml_collections.ConfigDict
    experiment: Experiment
    pretrained: Sequence[Params]
    segments: dict[str, Segments]
    encoded: dict[tuple[str, int], dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    known: dict[tuple[str, int], dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    read: dict[tuple, Answer] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(cls, config: ml_collections.ConfigDict, experiments: Sequence[Experiment]) -> Self:
        """Of fine-tunings that differ in their encoder alone."""
        # The test fold is not looked at unless it is reported.
        folds = dict.fromkeys(("train", "valid", config.compare.fold))
        first = experiments[0]
        encoders = [own.encoder for own in experiments if own.encoder is not None]
        return cls(config, first, encoders, {fold: first.segments(fold) for fold in folds})

    @property
    def reported(self) -> Segments:
        return self.segments[self.config.compare.fold]

    @functools.cached_property
    def resident(self) -> Resident | None:
        """All its segments, for sweeps and their predictions; None where these read batch by batch."""
        return Resident.of(self.config.data.resident, list(self.segments.values()), together=True)

    def positions(self, cell: Cell) -> Int[np.ndarray, "n"]:
        """The cell's labelled segments, the same for every arm."""
        labels = self.segments["train"].labels
        return label_budget.choose(labels, num_labels(cell.budget, len(labels)), cell.seed)

    def split(self, cell: Cell) -> tuple[Segments, Segments]:
        """The cell's labelled segments to learn from and to choose by: those of the validation fold or, by `compare.validation`, of its budget."""
        own = self.segments["train"].take(self.positions(cell))
        if self.config.compare.validation == "fold":
            return own, self.segments["valid"]
        held_out = label_budget.held_out(own.recordings, cell.seed)
        return own.take(np.flatnonzero(~held_out)), own.take(np.flatnonzero(held_out))

    def of(self, part: Segments, vectors: dict[str, Float[np.ndarray, "s p"]]) -> Float[np.ndarray, "n p"]:
        """The vectors of some segments of a fold."""
        (fold,) = [name for name in vectors if self.segments[name].whole is part.whole]
        return vectors[fold][np.searchsorted(self.segments[fold].positions, part.positions)]

    def training(self, seed: int, source: str, labels: int = 0, **settings) -> Experiment:
        """A fine-tuning on so many labels from the encoder of a source, `pretrained` or `random`, with these settings of `config.train`."""
        config = part(self.config, "finetune", seed=seed)
        config.train = stretched(config.train, labels)
        config.train.update(settings)
        return dataclasses.replace(
            self.experiment, config=config, encoder=self.pretrained[self.origin(source, seed)] if source == "pretrained" else None
        )

    def origin(self, source: str, seed: int) -> int:
        """What a source's vectors depend on, beside the corpus: a random encoder on the seed, pretrained ones take turns."""
        return {"random": seed, "pretrained": (seed - self.config.seed) % max(1, len(self.pretrained))}.get(source, 0)

    def represented(self, source: str, seed: int, fold: str) -> Float[np.ndarray, "s p"]:
        """What an encoder, `pretrained` or `random`, makes of a fold's segments and those on which they are standardised, before that."""
        made = self.encoded.setdefault((source, self.origin(source, seed)), {})
        if fold not in made:
            training, part = self.training(seed, source), {fold: self.segments[fold].with_basis()}
            encoder = training.objective.encoder, training.params()["encoder"]
            made |= represent(*encoder, part, *training.sizes, self.resident, training.objective.reads)
        return made[fold]

    def vectors(self, source: str, seed: int) -> dict[str, Float[np.ndarray, "s p"]]:
        """Vectors of every fold's segments from a source, standardised as those that a head reads."""
        key = source, self.origin(source, seed)
        if key not in self.known:
            if source == "pca":  # what unlabelled speech gives without a pretext task
                functional = self.vectors("functionals", seed)
                segments, width = functional["train"].shape
                number = max(1, min(_COMPONENTS, segments - 1, width))  # one more would be rounding alone, which whitening makes large
                components = PCA(number, whiten=True, random_state=0).fit(functional["train"])
                self.known[key] = {fold: components.transform(own) for fold, own in functional.items()}
                return self.known[key]
            experiment, whole = self.experiment, {fold: own.with_basis() for fold, own in self.segments.items()}
            if source == "functionals":
                made = {fold: own.functionals for fold, own in whole.items()}
            else:
                made = {fold: self.represented(source, seed, fold) for fold in whole}
                del self.encoded[key]  # standardised, they are all that is read from now on
            toward, prior = standards.overall(made["train"]), experiment.objective.standards_prior
            standardised = {fold: standards.standardised(made[fold], own.basis, toward, prior) for fold, own in whole.items()}
            self.known[key] = {fold: np.asarray(own)[: len(self.segments[fold])] for fold, own in standardised.items()}
        return self.known[key]

    def side_by_side(self, sources: Sequence[str], seed: int) -> dict[str, Float[np.ndarray, "s p"]]:
        """Vectors of several sources."""
        parts = [self.vectors(source, seed) for source in sources]
        return {fold: np.concatenate([part[fold] for part in parts], 1) for fold in self.segments}
