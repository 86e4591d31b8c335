"""Self-supervised pretraining of transformers on encoded acoustic features of speech."""

__version__ = "0.1.0"
