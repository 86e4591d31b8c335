"""From raw frames to what the encoder sees: normalise, clip, pool, stack. Every path uses this one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from jax_emossl.data.normalisation import ENROLMENT, MODES, NEUTRAL, NONE, RECORDING
from jax_emossl.data.prepared import Corpus, numbers
from jax_emossl.data.statistics import Statistics
from jax_emossl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Frontend:
    """The feature normalisation that belongs to an encoder; saved and transferred with it.

    Attributes:
      names: features, in the order of the columns.
      train: statistics of the training fold on which the encoder was first trained.
      prior: seconds of weight that `train` has against statistics of the recording.
      clip: normalised values are clipped to [-clip, clip].
      pool: consecutive frames averaged into one.
      stack: consecutive pooled frames concatenated into one model step.
      frame_seconds: duration of a frame; the mean one of words.
      by: what of its recording normalises a segment, see `normalisation`.
      enrolment: segments of a recording that do so, where some are drawn.
      sources: where features are of several files, these by name with the number of features of each, in order.
    """

    names: tuple[str, ...]
    train: Statistics
    prior: float
    clip: float
    pool: int
    stack: int
    frame_seconds: float
    by: str = RECORDING
    enrolment: int = 0
    sources: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(cls, data: ml_collections.ConfigDict, corpus: Corpus) -> Self:
        """That of `config.data` for a corpus, whose training fold normalises; it takes as many frames as come nearest to its seconds."""
        pool = max(1, round(data.pool / corpus.frame_seconds))
        stack = max(1, round(data.stack / (pool * corpus.frame_seconds)))
        prior = np.inf if data.normalise_by == NONE else data.norm_prior
        own = pool, stack, corpus.frame_seconds, data.normalise_by, data.enrolment
        return cls(corpus.features, corpus.train_statistics, prior, data.clip, *own, corpus.sources)

    @property
    def dimension(self) -> int:
        """Width of a model step."""
        return len(self.names) * self.stack

    @property
    def enrolled(self) -> bool:
        """Whether some segments of a recording are drawn to normalise the others."""
        return self.by in (ENROLMENT, NEUTRAL)

    @property
    def frames_per_step(self) -> int:
        return self.pool * self.stack

    @property
    def step_seconds(self) -> float:
        return self.frames_per_step * self.frame_seconds

    def steps(self, seconds: float) -> int:
        """Model steps that come nearest to a positive duration, at least 1; 0 for 0."""
        return max(1, round(seconds / self.step_seconds)) if seconds else 0

    def num_steps(self, num_frames: Int[np.ndarray, "s"]) -> Int[np.ndarray, "s"]:
        return -(-num_frames // self.frames_per_step)

    def location_and_scale(self, own: Statistics) -> tuple[Float[np.ndarray, "f"], Float[np.ndarray, "f"]]:
        """What to subtract and what to divide by for a recording, or a segment; constant dimensions are left at 0."""
        shrunk = own.shrunk(self.train, self.prior)
        location = np.nan_to_num(shrunk.mean)
        deviation = np.sqrt(np.nan_to_num(shrunk.variance))
        constant = deviation <= 1e-6 * (1 + np.abs(location))
        return location.astype(np.float32), np.where(constant, np.inf, deviation).astype(np.float32)

    def __call__(
        self,
        frames: Float[np.ndarray, "*b n f"],
        location: Float[np.ndarray, "*b f"],
        scale: Float[np.ndarray, "*b f"],
        counts: Int[np.ndarray, "*b"] | None = None,
    ) -> Float[np.ndarray, "*b t d"]:
        """Model steps of pieces, alike or each with its own `location` and `scale`; those of a piece depend on no other.

        NaN is read as the location. The last pool averages the frames there are, the last stack and the steps beyond a piece are filled
        with 0.

        Args:
          counts: of the n frames of each piece, how many there are; None = all.
        """
        number, lead = frames.shape[-2], frames.shape[:-2]
        counts = np.full(lead, number) if counts is None else counts
        if missing := -number % self.frames_per_step:
            frames = np.pad(frames, (*[(0, 0)] * len(lead), (0, missing), (0, 0)))
        normal = frames - location[..., None, :]
        normal /= scale[..., None, :]
        np.clip(normal, -self.clip, self.clip, out=normal)
        np.copyto(normal, 0, where=np.isnan(normal))
        normal[np.arange(number + missing) >= counts[..., None]] = 0
        if self.pool > 1:
            parts = normal.reshape(*lead, -1, self.pool, len(self.names))
            normal = sum(
                (parts[..., k, :] for k in range(2, self.pool)), parts[..., 0, :] + parts[..., 1, :]
            )  # faster than a sum over an axis
            first = np.arange(0, number + missing, self.pool)
            normal /= np.clip(counts[..., None] - first, 1, self.pool).astype(np.float32)[..., None]
        return normal.reshape(*lead, -1, self.dimension)

    def check_features(self, names: Sequence[str], source: object, corpus: str = "the corpus") -> None:
        """Refuses a corpus with features other than those of the `source`."""
        if len(names) != len(self.names):
            raise UserError(
                f"{source} has {len(self.names)} features, {corpus} has {len(names)}: use corpora with the same features, in the same order."
            )
        for own, other in zip(self.names, names, strict=True):
            if own != other:
                raise UserError(f"{source} has the feature '{own}' where {corpus} has '{other}': use the same features in the same order.")

    def settings(self) -> dict[str, float | str]:
        """The fields of `config.data` that make this frontend."""
        pool = self.pool * self.frame_seconds
        own = {"normalise_by": self.by, "enrolment": self.enrolment}
        return {"norm_prior": self.prior, "clip": self.clip, "pool": pool, "stack": self.stack * pool, **own}

    def to_json(self) -> dict:
        # JSON has no infinity; null stands for it.
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return own | {"train": self.train.to_json(), "prior": None if np.isinf(self.prior) else self.prior, "sources": dict(self.sources)}

    @classmethod
    def from_json(cls, table: dict) -> Self:
        """Raises KeyError, TypeError or ValueError on anything that `to_json` does not write."""
        train, names, prior = Statistics.from_json(table["train"]), tuple(table["names"]), table["prior"]
        sizes = [kind(table[name]) for name, kind in (("clip", float), ("pool", int), ("stack", int), ("frame_seconds", float))]
        own = str(table["by"]), int(table["enrolment"]), numbers(table.get("sources", {}), len(names))
        made = cls(names, train, np.inf if prior is None else float(prior), *sizes, *own)
        if not made.prior >= 0 or not all(0 < size < np.inf for size in sizes) or made.by not in MODES or made.enrolment < 0:
            raise ValueError("the frontend is out of range")
        if len(train.mean) != len(names):
            raise ValueError("the statistics and the features differ in number")
        return made
