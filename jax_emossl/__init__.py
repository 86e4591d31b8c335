"""Self-supervised pretraining of transformers on encoded acoustic features of speech."""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str):
    """`load_model` on demand: what does not use it need not wait for JAX."""
    if name == "load_model":
        return importlib.import_module("jax_emossl.model").load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
