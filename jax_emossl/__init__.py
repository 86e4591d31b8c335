"""Self-supervised pretraining of transformers on encoded acoustic features of speech."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`load_model` on demand: what does not use it need not wait for JAX."""
    if name == "load_model":
        from jax_emossl.model import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
