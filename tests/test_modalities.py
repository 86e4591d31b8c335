import json

import jax
import numpy as np
import pytest

from configs import wu2023
from jax_emossl import encoders
from jax_emossl.card import Card
from jax_emossl.data import csd
from jax_emossl.data.corpus import COVAREP_DIMENSIONS
from jax_emossl.encoders.modalities import Modalities, grouped
from jax_emossl.errors import UserError
from jax_emossl.experiment import build

EGEMAPS = (
    "Loudness_sma3", "alphaRatio_sma3", "mfcc1_sma3", "F0semitoneFrom27.5Hz_sma3nz", "jitterLocal_sma3nz", "HNRdBACF_sma3nz",
    "logRelF0-H1-H2_sma3nz", "F1frequency_sma3nz", "F2amplitudeLogRelF0_sma3nz",
)  # fmt: skip


def test_prosody_voice_and_spectrum_are_known_by_the_names_of_egemaps_and_covarep():
    assert grouped("", EGEMAPS, {}) == (("prosody", (0, 3)), ("voice", (4, 5, 6)), ("spectral", (1, 2, 7, 8)))
    covarep = grouped("", COVAREP_DIMENSIONS, {})
    assert [(name, len(places)) for name, places in covarep] == [("prosody", 2), ("voice", 9), ("spectral", 63)]


def test_a_feature_belongs_to_the_first_group_that_has_its_name():
    assert grouped("pitch=F0,VUV;rest=*", ("energy", "F0", "VUV"), {}) == (("pitch", (1, 2)), ("rest", (0,)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pitch=F0,tone;rest=*", "model.groups has 'tone' in pitch, but no feature is called that: the features are F0, energy."),
        ("pitch=F0", "The feature 'energy' is in no group: give model.groups a pattern for it"),
        ("all=*;pitch=F0", "model.groups leaves no feature for pitch: name its features before"),
        ("pitch", "model.groups is 'pitch', where 'pitch' is no group: give each once"),
        ("a=F0;a=energy", "where 'a' is no group: give each once"),
    ],
)
def test_groups_that_do_not_fit_the_features_are_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        grouped(text, ("F0", "energy"), {})


def test_unknown_features_need_groups_of_their_own():
    with pytest.raises(UserError, match="The feature 'smile' is in no group"):
        grouped("", ("F0", "smile"), {})


def test_features_of_several_files_are_grouped_by_them():
    names, sources = ("F0", "energy", "smile", "frown", "OpenFace.energy"), {"acoustic": 2, "OpenFace_2.0": 3}
    assert grouped("", names, sources) == (("acoustic", (0, 1)), ("OpenFace_2.0", (2, 3, 4)))
    assert grouped("pitch=F0;face=OpenFace_2.0;rest=*", names, sources) == (("pitch", (0,)), ("face", (2, 3, 4)), ("rest", (1,)))
    with pytest.raises(UserError, match="model.groups leaves no feature for face: name its features before"):
        grouped("all=*;face=OpenFace_2.0", names, sources)


def test_each_file_of_a_corpus_is_a_group_of_a_runs_encoder_and_of_its_card(demo_files, tmp_path):
    """From the config's list of files on; a recording that a file lacks has the mean there, which is 0."""
    demo = demo_files / "DEMO_COVAREP.csd"
    with csd.Sequence(demo) as first:
        spans = [(r, np.arange(0, first.intervals(r)[-1, 1], 0.04)) for r in first.ids[1:]]
    rows = [(r, np.random.default_rng(i).normal(size=(len(t), 3)), np.column_stack([t, t + 0.04])) for i, (r, t) in enumerate(spans)]
    csd.write(tmp_path / "faces.csd", "OpenFace_2.0", rows)
    config = wu2023.get_config()
    files = {"features": f"{demo},{tmp_path}/faces.csd", "labels": f"{demo_files}/DEMO_Labels.csd", "folds": f"{demo_files}/folds.json"}
    config.data.update(files | {"pool": 0.02, "stack": 0.04})
    config.model.width = 8
    experiment = build(config)
    groups = experiment.objective.encoder.groups
    assert groups == (("COVAREP", tuple(range(74))), ("OpenFace_2.0", (74, 75, 76)))
    card = Card.from_json(json.loads(json.dumps(experiment.card().to_json())))
    assert encoders.make(experiment.config.model, 0.0, card.frontend).groups == groups
    segments = experiment.segments("train", "valid", "test")
    lacking = np.isin(segments.recordings, [r for r, _ in spans], invert=True)
    for i in (lacking.argmin(), lacking.argmax()):
        steps = segments.steps(i).reshape(-1, 77)
        assert np.isfinite(steps).all() and steps[:, :74].any() and steps[:, 74:].any() != lacking[i]
    assert experiment.params()["encoder"]["group_1_projection"]["kernel"].shape == (config.model.channels, 8)


def test_a_groups_convolutions_see_its_own_features_in_every_frame_of_a_step():
    encoder = Modalities((("a", (0, 2)), ("b", (1,))), width=8, layers=1, heads=2, conv_layers=1, channels=4, kernel=3, near=2.0, far=8.0)
    features = np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32)  # steps of two frames
    num_steps = np.array([6, 4])
    params = jax.jit(encoder.init)(jax.random.key(0), features, num_steps)
    assert params["params"]["group_0_conv_0"]["Conv_0"]["kernel"].shape == (3, 4, 4)
    assert params["params"]["group_1_conv_0"]["Conv_0"]["kernel"].shape == (3, 2, 4)
    apply = jax.jit(encoder.apply)
    before = apply(params, features.copy(), num_steps).layers
    assert [layer.shape for layer in before] == [(2, 6, 16)] * 2
    features[..., [1, 4]] += 1.0  # of b alone, in both frames
    tokens, fused = apply(params, features, num_steps).layers
    np.testing.assert_array_equal(tokens[..., :8], before[0][..., :8])
    assert not np.allclose(tokens[..., 8:], before[0][..., 8:], atol=1e-3)
    assert not np.allclose(fused[..., :8], before[1][..., :8], atol=1e-3)  # the shared layer lets a hear of b
