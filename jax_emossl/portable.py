"""A model as one program that JAX alone can run: frames in, emotions out, batch and time of any size (StableHLO, `jax.export`)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data import functionals
from jax_emossl.data.frontend import Frontend
from jax_emossl.layers import valid_steps
from jax_emossl.model import Model

PLATFORMS = ("cpu", "cuda", "tpu")


def exported(model: Model) -> bytes:
    """The program, weights and normalisation included.

    It is called with frames (b, n, F) as the model's corpus was encoded, n a multiple of the frames of a model step, and their numbers
    (b,), what lies beyond being ignored; every row is a recording. It returns what `model(frames)` does.
    """
    frontend = model.card.frontend
    rows, steps = jax.export.symbolic_shape("b, t")
    frames = jax.ShapeDtypeStruct((rows, frontend.frames_per_step * steps, len(frontend.names)), jnp.float32)
    return jax.export.export(jax.jit(program(model)), platforms=PLATFORMS)(frames, jax.ShapeDtypeStruct((rows,), jnp.int32)).serialize()


def program(model: Model) -> Callable[[Float[Array, "b n f"], Int[Array, "b"]], dict[str, Array]]:
    """The model as a pure function of JAX arrays."""

    def answer(frames: Float[Array, "b n f"], num_frames: Int[Array, "b"]) -> dict[str, Array]:
        outputs = model.trained.predict(model.variables, _batch(model.card.frontend, frames, num_frames, model.trained.reads_functionals))

        def finished(own: dict[str, Array]) -> Float[Array, "1 c"]:
            return model.trained.finish(model.variables, own, jnp.zeros((1, 3), jnp.int32))["scores"]  # which rests on no other

        scores = jax.vmap(finished)({name: own[:, None] for name, own in outputs.items()})[:, 0]
        return {"scores": scores, **model.answer(scores)}

    return answer


def _batch(frontend: Frontend, frames: Float[Array, "b n f"], num_frames: Int[Array, "b"], with_functionals: bool) -> dict[str, Array]:
    """What `Segments` make of recordings, all of a batch that a prediction needs."""
    there = valid_steps(num_frames, frames.shape[1])[..., None]
    finite = there & jnp.isfinite(frames)
    mean, variance = _moments(frames, finite & _voiced(frontend, frames))
    seconds = num_frames * frontend.frame_seconds
    reliance = seconds / jnp.maximum(seconds + frontend.prior, np.finfo(np.float32).tiny) if np.isfinite(frontend.prior) else 0.0 * seconds

    def shrunk(own: Float[Array, "b f"], fold: Float[np.ndarray, "f"]) -> Float[Array, "b f"]:
        weight = reliance[:, None]
        return jnp.nan_to_num(jnp.where(jnp.isnan(own), fold, weight * jnp.nan_to_num(own) + (1 - weight) * np.nan_to_num(fold)))

    location, deviation = shrunk(mean, frontend.train.mean), jnp.sqrt(shrunk(variance, frontend.train.variance))
    scale = jnp.where(deviation <= 1e-6 * (1 + jnp.abs(location)), jnp.inf, deviation)
    normal = jnp.clip((frames - location[:, None]) / scale[:, None], -frontend.clip, frontend.clip)
    in_pools = jnp.where(finite, normal, 0).reshape(frames.shape[0], -1, frontend.pool, frames.shape[-1]).sum(2)
    sizes = there.astype(jnp.float32).reshape(frames.shape[0], -1, frontend.pool, 1).sum(2)
    pooled = in_pools / jnp.maximum(sizes, 1)
    features = pooled.reshape(frames.shape[0], -1, frontend.dimension)
    own = {"functionals": functionals.of_segments(jnp.where(finite, normal, 0), num_frames)} if with_functionals else {}
    return {"features": features, "num_steps": -(-num_frames // frontend.frames_per_step), **own}


def _moments(values: Float[Array, "b n f"], counted: Bool[Array, "b n f"]) -> tuple[Float[Array, "b f"], Float[Array, "b f"]]:
    """Mean and variance of the values that count, NaN where none does."""
    number = counted.sum(1).astype(jnp.float32)
    mean = jnp.where(counted, values, 0).sum(1) / number
    return mean, (jnp.where(counted, values - mean[:, None], 0) ** 2).sum(1) / number


def _voiced(frontend: Frontend, frames: Float[Array, "b n f"]) -> Bool[Array, "b n f"]:
    """As `statistics.voiced_frames`: F0 counts where there is a voice."""
    names = frontend.names
    pitch = np.array([name.startswith("F0") for name in names])
    voice = frames[..., names.index("VUV")][..., None] > 0.5 if "VUV" in names else frames > 0
    return jnp.where(pitch, voice, True)
