import jax
import numpy as np
import pytest

from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders.transformer import Transformer
from jax_emossl.representation import Representation, represent
from jax_emossl.resident import Resident

ENCODER = Transformer(width=8, layers=1, heads=1)


@pytest.fixture(scope="module")
def folds(demo_corpus):
    frontend = Frontend(demo_corpus.features, demo_corpus.train_statistics, 180.0, 5.0, 2, 8, 0.01)
    return {name: Segments(demo_corpus, [name], frontend) for name in ("train", "valid")}


@pytest.fixture(scope="module")
def params(folds):
    example = folds["train"].steps(0)[None], folds["train"].lengths[:1]
    return jax.jit(ENCODER.init)(jax.random.key(0), *example)["params"]


@pytest.mark.parametrize("resident", [False, True])
def test_folds_are_represented_by_what_the_encoder_pools_of_each_segment(resident, folds, params):
    pool = jax.jit(lambda *own: ENCODER.apply({"params": params}, *own).pooled())
    made = represent(ENCODER, params, folds, 8, 8.0, Resident(list(folds.values())) if resident else None)
    assert {name: own.shape for name, own in made.items()} == {name: (len(own), 2 * 2 * 8) for name, own in folds.items()}
    steps = folds["valid"].steps(7)
    np.testing.assert_allclose(made["valid"][7], pool(steps[None], np.array([len(steps)]))[0], rtol=1e-4, atol=1e-5)


def test_a_representation_reads_the_encoder_alone(folds, params):
    steps = folds["train"].steps(3)
    batch = {"features": steps[None], "num_steps": np.array([len(steps)])}
    own, other = ({"params": {"encoder": params, "head": head}, "constants": {}} for head in ({}, {"bias": np.ones(3)}))
    predict = jax.jit(Representation(ENCODER).predict)
    np.testing.assert_array_equal(predict(own, batch)["pooled"], predict(other, batch)["pooled"])
    assert not Representation(ENCODER).labelled
