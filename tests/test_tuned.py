"""How the answers of a trained arm come about; trainings themselves are tested with the comparison."""

import types

import ml_collections
import pytest

from jax_emossl import tuned
from jax_emossl.study import Answer, Cell


@pytest.mark.parametrize(("functionals", "expected"), [(False, ("random",)), (True, ("random", "functionals"))])
def test_the_linear_strategy_reads_what_the_head_reads(functionals, expected, monkeypatch):
    read = []
    monkeypatch.setattr(tuned.linear, "answer", lambda study, cell, reads: read.append(reads) or Answer(None, None, None, 0.5, None, {}))
    monkeypatch.setattr(tuned, "averaged", lambda objective, made, valid: made[0])
    study = types.SimpleNamespace(
        experiment=types.SimpleNamespace(objective=types.SimpleNamespace(reads_functionals=functionals), sizes=(8, 2.0)),
        config=ml_collections.ConfigDict({"compare": {"strategies": ("linear",)}}),
        split=lambda cell: (None, None),
        reported=None,
    )
    list(tuned._answers(study, [Cell("scratch", 12, 0)], [[]]))
    assert read == [expected]
