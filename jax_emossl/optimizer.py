"""AdamW with warm-up and cosine decay, and an encoder that may learn later or not at all."""

import dataclasses
from typing import Any, Self

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Rates:
    """What may differ between runs that share a compiled step.

    Attributes:
      learning_rate: peak.
      trains_encoder: 1, or 0 for a probe, which leaves the encoder as it is.
      probe_steps: steps during which the encoder is frozen.
    """

    learning_rate: Float[Array, ""]
    trains_encoder: Float[Array, ""]
    probe_steps: Int[Array, ""]

    @classmethod
    def make(cls, settings: ml_collections.ConfigDict) -> Self:
        """From `config.train`; 'probe-then-full' is LP-FT (Kumar et al. 2022, arXiv 2202.10054). A pretraining has no strategy."""
        strategy = settings.get("strategy", "full")
        probe_steps = settings.probe_steps if strategy == "probe-then-full" else 0
        return cls(np.float32(settings.learning_rate), np.float32(strategy != "probe"), np.int32(probe_steps))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Static settings; runs that differ only in `Rates` share one compiled step.

    Attributes:
      b2: Adam's decay of the second moment.
      weight_decay: decoupled, on weight matrices only, which biases and scales are not.
      clip_norm: largest global norm of the gradient.
      warmup_steps: linear warm-up, of the encoder again from the step at which it thaws.
      steps: length of the cosine decay to 0.
      accumulate: parts of a batch whose gradients are added up, one after another.
    """

    b2: float
    weight_decay: float
    clip_norm: float
    warmup_steps: int
    steps: int
    accumulate: int = 1

    @classmethod
    def make(cls, settings: ml_collections.ConfigDict) -> Self:
        """From `config.train`."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: settings[name] for name in names})

    def transformation(self) -> optax.GradientTransformation:
        """Adam's direction, to be scaled by `step_sizes`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.scale_by_adam(b2=self.b2),
            optax.add_decayed_weights(self.weight_decay, mask=lambda params: jax.tree_util.tree_map_with_path(_decays, params)),
        )

    def step_sizes(self, rates: Rates, step: Int[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Learning rates at `step`, of the encoder and of everything else."""
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, self.warmup_steps, max(self.steps, self.warmup_steps + 1))
        rate = rates.learning_rate * schedule(step + 1)
        since_thaw = step - rates.probe_steps + 1
        warm = jnp.clip(since_thaw / max(self.warmup_steps, 1), 0.0, 1.0)
        thawed = jnp.where(rates.probe_steps > 0, warm, 1.0)  # without a probe the schedule's own warm-up is enough
        return rate * rates.trains_encoder * thawed, rate

    def apply(self, gradients: Any, opt_state: Any, params: dict, rates: Rates, step: Int[Array, ""]) -> tuple[dict, Any]:
        """Parameters and optimiser state after one step."""
        encoder_rate, rate = self.step_sizes(rates, step)
        if "encoder" in gradients:  # frozen, it does not count in the norm either
            frozen = jax.tree.map(lambda g: jnp.where(encoder_rate > 0, g, 0), gradients["encoder"])
            gradients = {**gradients, "encoder": frozen}
        direction, opt_state = self.transformation().update(gradients, opt_state, params)
        updates = {
            name: jax.tree.map(lambda d, r=encoder_rate if name == "encoder" else rate: -r * d, subtree)
            for name, subtree in direction.items()
        }
        return optax.apply_updates(params, updates), opt_state


def _decays(path: tuple, leaf: Array) -> bool:
    """Whether a parameter is a weight matrix; a bias may have an axis for heads."""
    return leaf.ndim > 1 and path[-1].key not in ("bias", "scale")
