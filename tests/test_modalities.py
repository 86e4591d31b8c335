import jax
import numpy as np
import pytest

from jax_emossl.data.corpus import COVAREP_DIMENSIONS
from jax_emossl.encoders.modalities import Modalities, grouped
from jax_emossl.errors import UserError

EGEMAPS = (
    "Loudness_sma3", "alphaRatio_sma3", "mfcc1_sma3", "F0semitoneFrom27.5Hz_sma3nz", "jitterLocal_sma3nz", "HNRdBACF_sma3nz",
    "logRelF0-H1-H2_sma3nz", "F1frequency_sma3nz", "F2amplitudeLogRelF0_sma3nz",
)  # fmt: skip


def test_prosody_voice_and_spectrum_are_known_by_the_names_of_egemaps_and_covarep():
    assert grouped("", EGEMAPS) == (("prosody", (0, 3)), ("voice", (4, 5, 6)), ("spectral", (1, 2, 7, 8)))
    covarep = grouped("", COVAREP_DIMENSIONS)
    assert [(name, len(places)) for name, places in covarep] == [("prosody", 2), ("voice", 9), ("spectral", 63)]


def test_a_feature_belongs_to_the_first_group_that_has_its_name():
    assert grouped("pitch=F0,VUV;rest=*", ("energy", "F0", "VUV")) == (("pitch", (1, 2)), ("rest", (0,)))


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
        grouped(text, ("F0", "energy"))


def test_unknown_features_need_groups_of_their_own():
    with pytest.raises(UserError, match="The feature 'smile' is in no group"):
        grouped("", ("F0", "smile"))


def test_a_groups_convolutions_see_its_own_features_in_every_frame_of_a_step():
    encoder = Modalities((("a", (0, 2)), ("b", (1,))), width=8, layers=1, heads=2, conv_layers=1, channels=4, kernel=3, near=2.0, far=8.0)
    features = np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32)  # steps of two frames
    num_steps = np.array([6, 4])
    params = jax.jit(encoder.init)(jax.random.key(0), features, num_steps)
    assert params["params"]["a_conv_0"]["Conv_0"]["kernel"].shape == (3, 4, 4)
    assert params["params"]["b_conv_0"]["Conv_0"]["kernel"].shape == (3, 2, 4)
    apply = jax.jit(encoder.apply)
    before = apply(params, features.copy(), num_steps).layers
    assert [layer.shape for layer in before] == [(2, 6, 16)] * 2
    features[..., [1, 4]] += 1.0  # of b alone, in both frames
    tokens, fused = apply(params, features, num_steps).layers
    np.testing.assert_array_equal(tokens[..., :8], before[0][..., :8])
    assert not np.allclose(tokens[..., 8:], before[0][..., 8:], atol=1e-3)
    assert not np.allclose(fused[..., :8], before[1][..., :8], atol=1e-3)  # the shared layer lets a hear of b
