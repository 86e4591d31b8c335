import jax
import ml_collections
import numpy as np
import pytest

from jax_emossl import encoders
from jax_emossl.encoders import Encoded
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.layers import pool_statistics
from jax_emossl.objectives.emotion import Intensity
from jax_emossl.objectives.masked_timesteps import MaskedTimesteps
from jax_emossl.ordinal import Levels

RECURRENT = '''
"""A new encoder: a recurrent network, whose last state sums up a row."""
import flax.linen as nn

from jax_emossl.encoders import Encoded


class Recurrent(nn.Module):
    width: int

    @nn.compact
    def __call__(self, features, num_steps, masked=None, deterministic=True):
        if masked is not None:
            features = features * ~masked[..., None]
        state, outputs = nn.RNN(nn.SimpleCell(self.width), return_carry=True)(features, seq_lengths=num_steps)
        return Encoded((outputs,), num_steps, state)


def make(model, dropout, step):
    return Recurrent(model.width)
'''
MODEL = ml_collections.ConfigDict(
    {"name": "transformer", "width": 16, "layers": 2, "heads": 4, "near": 0.1, "far": 0.4, "dtype": "bfloat16", "remat": True}
)


@pytest.fixture
def recurrent(tmp_path, monkeypatch):
    (tmp_path / "recurrent.py").write_text(RECURRENT)
    monkeypatch.setattr(encoders, "__path__", [*encoders.__path__, str(tmp_path)])
    return encoders.make(ml_collections.ConfigDict({"name": "recurrent", "width": 8}), 0.0, 0.04)


def batch():
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(4, 12, 6)).astype(np.float32), "num_steps": np.array([12, 5, 1, 8], np.int32),
        "labels": rng.integers(0, 4, (4, 2)).astype(np.float32), "weight": np.ones(4, np.float32),
        "segment": np.arange(4, dtype=np.int32), "recording": np.zeros(4, np.int32),
    }  # fmt: skip


def test_the_config_names_the_encoder():
    assert encoders.make(MODEL, 0.1, 0.05) == Transformer(16, 2, 4, 2.0, 8.0, 0.1, "bfloat16", True)


def test_heads_read_every_layers_statistics_and_the_summary_where_there_is_one():
    layers = tuple(np.random.default_rng(0).normal(size=(2, 3, 7, 4)).astype(np.float32))
    num_steps, summary = np.array([7, 2, 4]), np.ones((3, 5), np.float32)
    statistics = pool_statistics(layers, num_steps)
    np.testing.assert_array_equal(Encoded(layers, num_steps).pooled(), statistics)
    np.testing.assert_array_equal(Encoded(layers, num_steps, summary).pooled(), np.concatenate([statistics, summary], 1))


def test_a_new_encoder_is_one_new_file_for_every_objective(recurrent):
    pooled = 2 * 8 + 8  # of its one layer, and its summary
    intensity = Intensity(recurrent, ("happy", "sad"), ("happy", "sad"), 0.0, "auroc", Levels.of(np.eye(2)))
    standards = {"recordings": {"location": np.zeros((1, pooled), np.float32), "scale": np.ones((1, pooled), np.float32)}}
    for objective, constants in ((MaskedTimesteps(recurrent, 6, 0.5, 3, "l1", 1.0), {}), (intensity, standards)):
        params = jax.jit(objective.init)(jax.random.key(0), batch())
        variables = {"params": params, "constants": constants}
        gradient = jax.jit(
            jax.grad(lambda p, o=objective, c=constants: o.loss({"params": p, "constants": c}, batch(), jax.random.key(1))[0])
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params)))
        assert all(len(values) == 4 for values in jax.jit(objective.predict)(variables, batch()).values())
    assert params["head"]["readout"]["kernel"].shape == (pooled, 2)
