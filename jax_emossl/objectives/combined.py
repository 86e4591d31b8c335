"""Several pretext tasks learned together by one encoder: `objective.name = masked_timesteps+agreement`.

Each has its fields in a group of its name, as `objective.agreement.temperature`, with its `weight` among them.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Int

from jax_emossl import objectives
from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.errors import UserError
from jax_emossl.metrics import Report
from jax_emossl.objectives import Batch, Objective, Outputs, Params, Variables


@dataclasses.dataclass(frozen=True)
class Combined(Objective):
    """The weighted sum of the parts' mean losses; what a part says goes by its name, as in `agreement.accuracy`.

    Attributes:
      parts: name, weight and objective of each.
    """

    parts: tuple[tuple[str, float, Objective], ...]
    selection: str = "total_loss"

    @property
    def together(self) -> int:
        return max(part.together for _, _, part in self.parts)

    @property
    def of_recordings(self) -> bool:
        return any(part.of_recordings for _, _, part in self.parts)

    def init(self, key: jax.Array, example: Batch) -> Params:
        own = {name: part.init(jax.random.fold_in(key, i), example) for i, (name, _, part) in enumerate(self.parts)}
        encoder = [params.pop("encoder") for params in own.values()][0]
        return {"encoder": encoder, **own}

    def begin(self, params: Params, segments: Segments) -> Params:
        made = {name: part.begin(_own(params, name), segments) for name, _, part in self.parts}
        return {name: own for name, own in made.items() if own}

    def follow(self, variables: Variables, progress: Array) -> Params:
        return {name: part.follow(_of(variables, name), progress) for name, _, part in self.parts if name in variables["constants"]}

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, progress: float = 1.0) -> tuple[Array, Array, dict[str, Array]]:
        """Of the batch's rows, whatever a part counts, so that weights compare means."""
        rows, total, sums = batch["weight"].sum(), 0.0, {}
        for i, (name, weight, part) in enumerate(self.parts):
            loss, count, others = part.loss(_of(variables, name), batch, jax.random.fold_in(key, i), progress)
            total += weight * rows * loss / jnp.maximum(count, 1e-9)
            sums |= {f"{name}.{what}": rows * own / jnp.maximum(count, 1e-9) for what, own in {"loss": loss, **others}.items()}
        return total, rows, sums

    def predict(self, variables: Variables, batch: Batch) -> Outputs:
        return _named({name: part.predict(_of(variables, name), batch) for name, _, part in self.parts})

    def finish(self, variables: Variables, outputs: Outputs, basis: Int[Array, "b 3"]) -> Outputs:
        return _named({name: part.finish(_of(variables, name), _part(outputs, name), basis) for name, _, part in self.parts})

    def evaluate(self, outputs: Outputs, labels: np.ndarray, calibration: None) -> Report:
        """All that the parts report, and the weighted total of what would choose their steps."""
        reports = {name: part.evaluate(_part(outputs, name), labels, calibration)[0] for name, _, part in self.parts}
        total = sum(weight * reports[name][part.selection] for name, weight, part in self.parts)
        return {"total_loss": total, **_named(reports)}, {}

    def illustrate(self, variables: Variables, batch: Batch) -> dict[str, np.ndarray]:
        """The pictures of the first part that has any."""
        return next(filter(None, (part.illustrate(_of(variables, name), batch) for name, _, part in self.parts)), {})


def _own(params: Params, name: str) -> Params:
    return {"encoder": params["encoder"], **params[name]}


def _of(variables: Variables, name: str) -> Variables:
    return {"params": _own(variables["params"], name), "constants": variables["constants"].get(name, {})}


def _named(parts: dict[str, dict]) -> dict:
    return {f"{name}.{what}": value for name, own in parts.items() for what, value in own.items()}


def _part(outputs: Outputs, name: str) -> Outputs:
    return {what.removeprefix(f"{name}."): value for what, value in outputs.items() if what.startswith(f"{name}.")}


def make(config: ml_collections.ConfigDict, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> Combined:
    """The objective of `config`; UserError where a part learns of labels."""
    parts = []
    for name in config.name.split("+"):
        part = objectives.make(ml_collections.ConfigDict({**config, "name": name}), encoder, frontend, corpus)
        if part.labelled:
            raise UserError(f"objective.name is '{config.name}', but {name} learns of labels: combine pretext tasks only.")
        parts.append((name, config[name].weight, part))
    return Combined(tuple(parts))
