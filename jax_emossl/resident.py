"""Where model steps lie while they are trained on (`data.resident`): on every device, or on disk and read batch by batch."""

from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_emossl import mesh as meshes
from jax_emossl import processes
from jax_emossl.data.batches import Batch, Segments
from jax_emossl.data.indices import Selection, in_order
from jax_emossl.errors import UserError
from jax_emossl.layers import valid_steps

SHARE = 0.1  # of a device's memory, that `auto` gives to model steps
_TOGETHER = 512  # segments sorted by length at once: the files are read nearly from front to back
_ALIGNMENT = 64  # bytes: JAX's CPU devices then use an array where it is


class Resident:
    """The model steps of some folds' segments, one after another, on every device, as `steps` (N, D).

    On accelerators they are float16, which keeps a normalised feature to one part in 2,000; batches have float32.
    """

    def __init__(self, folds: Sequence[Segments]):
        wholes = list(dict.fromkeys(fold.whole for fold in folds))
        ends = np.cumsum(np.concatenate([whole.lengths for whole in wholes]))
        own = np.split(ends, np.cumsum([len(whole) for whole in wholes])[:-1])
        self._first = {whole: end - whole.lengths for whole, end in zip(wholes, own, strict=True)}
        steps = _aligned(int(ends[-1]), wholes[0].dimension)
        for whole, first in self._first.items():
            for begin in range(0, len(whole), _TOGETHER):
                part = whole.take(np.arange(begin, min(begin + _TOGETHER, len(whole))))
                for (selection,) in in_order([part.lengths], 32, 1.25):
                    rows = part.gather(selection)["features"][selection.weight > 0]
                    for segment, row in zip(selection.segments, rows, strict=False):
                        place, length = first[begin + segment], part.lengths[segment]
                        steps[place : place + length] = row[:length]
        self.steps: Float[Array, "n d"] = meshes.replicate(steps, meshes.make(1))

    @classmethod
    def of(cls, how: str, folds: Sequence[Segments], together: bool) -> Self | None:
        """That of some folds, if `is_resident` says so."""
        return cls(folds) if is_resident(how, nbytes(folds), together) else None

    def gather(self, segments: Segments, selection: Selection) -> Batch:
        """The batch of a selection, whose features are named by their `places` (B, T) among `steps`."""
        rest = segments.gather_all_but_features(selection)
        first = self._first[segments.whole][segments.positions[selection.segments]] + selection.starts
        steps = np.minimum(np.arange(selection.length), rest["num_steps"][:, None] - 1)
        return {"places": (first[:, None] + steps).astype(np.int32), **rest}


def _aligned(number: int, dimension: int) -> Float[np.ndarray, "n d"]:
    size = dtype().itemsize * number * dimension
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].view(dtype()).reshape(number, dimension)


def dtype() -> np.dtype:
    """Of model steps that are resident; `data.clip` keeps them within float16."""
    return np.dtype(np.float32 if jax.default_backend() == "cpu" else np.float16)


def with_features(steps: Float[Array, "n d"] | None, batch: Batch) -> Batch:
    """A batch that has its features (B, T, D), taken from `steps` where it only names their places."""
    if "places" not in batch:
        return batch
    places = batch["places"]
    valid = valid_steps(batch["num_steps"], places.shape[1])[..., None]
    features = jnp.where(valid, steps[places], 0).astype(jnp.float32)
    return {"features": features, **{name: value for name, value in batch.items() if name != "places"}}


def nbytes(folds: Sequence[Segments]) -> int:
    """Of the model steps of some folds, resident."""
    return sum(dtype().itemsize * fold.dimension * int(fold.whole.lengths.sum()) for fold in folds)


def is_resident(how: str, size: float, together: bool) -> bool:
    """Whether `size` bytes of model steps stay on every device, by `data.resident`.

    A training alone needs them there only if it is told so; those that run `together` share them. The answer depends on what memory the
    machine has (that of the first of several processes), not on what is free, so that a run resumed does as it did. UserError where they
    are to stay, but cannot.
    """
    most = processes.of_first(meshes.device_memory)
    if how == "memory" and size > most:
        raise UserError(
            f"data.resident is memory, but the model steps take {size / 1e9:.1f} GB where a device has {most / 1e9:.1f} GB: "
            "give --config.data.resident=mapped."
        )
    return how == "memory" or (how == "auto" and together and size <= SHARE * most)


def placement(how: str, size: float, together: bool) -> str:
    """The same in words."""
    where = "resident on every device" if is_resident(how, size, together) else "mapped, and read batch by batch"
    return f"{size / 1e9:.2g} GB of model steps, {where}"
