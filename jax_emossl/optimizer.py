"""AdamW with warm-up and cosine decay, and an encoder that may learn slower, later or not at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int

from jax_emossl.errors import UserError

STRATEGIES = ("full", "frozen", "probe-then-full")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Static settings; runs that differ only in `Rates` share one compiled step.

    Attributes:
      b2: Adam's decay of the second moment.
      weight_decay: decoupled, on weight matrices only.
      clip_norm: largest global norm of the gradient.
      warmup_steps: linear warm-up, of the encoder again from the step at which it thaws.
      steps: length of the cosine decay to 0.
    """

    b2: float
    weight_decay: float
    clip_norm: float
    warmup_steps: int
    steps: int

    @classmethod
    def make(cls, settings: ml_collections.ConfigDict) -> Optimizer:
        """From `config.train`."""
        return cls(settings.b2, settings.weight_decay, settings.clip_norm, settings.warmup_steps, settings.steps)

    def transformation(self) -> optax.GradientTransformation:
        """Adam's direction, to be scaled by `step_sizes`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.scale_by_adam(b2=self.b2),
            optax.add_decayed_weights(self.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
        )

    def step_sizes(self, rates: Rates, step: Int[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Learning rates at `step`, of the encoder and of everything else."""
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, self.warmup_steps, max(self.steps, self.warmup_steps + 1))
        rate = rates.learning_rate * schedule(step + 1)
        since_thaw = step - rates.probe_steps + 1
        warm = jnp.clip(since_thaw / max(self.warmup_steps, 1), 0.0, 1.0)
        thawed = jnp.where(rates.probe_steps > 0, warm, 1.0)  # without a probe the schedule's own warm-up is enough
        return rate * rates.encoder_factor * thawed, rate

    def apply(self, gradients: Any, opt_state: Any, params: dict, rates: Rates, step: Int[Array, ""]) -> tuple[dict, Any]:
        """Parameters and optimiser state after one step."""
        direction, opt_state = self.transformation().update(gradients, opt_state, params)
        encoder_rate, rate = self.step_sizes(rates, step)
        updates = {
            name: jax.tree.map(lambda d, r=encoder_rate if name == "encoder" else rate: -r * d, subtree)
            for name, subtree in direction.items()
        }
        return optax.apply_updates(params, updates), opt_state


@flax.struct.dataclass
class Rates:
    """What may differ between runs that share a compiled step.

    Attributes:
      learning_rate: peak.
      encoder_factor: the encoder's learning rate over the head's.
      probe_steps: steps during which the encoder is frozen.
    """

    learning_rate: Float[Array, ""]
    encoder_factor: Float[Array, ""]
    probe_steps: Int[Array, ""]

    @classmethod
    def make(cls, settings: ml_collections.ConfigDict) -> Rates:
        """From `config.train`, whose strategy is 'full', 'frozen' (a probe) or 'probe-then-full' (LP-FT, Kumar et al. 2022)."""
        if settings.strategy not in STRATEGIES:
            raise UserError(f"train.strategy is '{settings.strategy}': choose one of {', '.join(STRATEGIES)}.")
        factor = 0.0 if settings.strategy == "frozen" else settings.encoder_factor
        probe = settings.probe_steps if settings.strategy == "probe-then-full" else 0
        return cls(jnp.float32(settings.learning_rate), jnp.float32(factor), jnp.int32(probe))
