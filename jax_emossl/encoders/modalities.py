"""Groups of features, each with convolutions of its own, and a transformer that they share, after Wu et al. 2023 (arXiv 2303.17611).

Shapes: B rows, T model steps, D input width, G groups, W model width.
"""

import fnmatch
import functools
import itertools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_emossl.data.frontend import Frontend
from jax_emossl.encoders import Encoded
from jax_emossl.encoders.transformer import Attention, Layer, in_steps, slopes
from jax_emossl.errors import UserError
from jax_emossl.layers import Convolution, Dense, valid_steps

Groups = tuple[tuple[str, tuple[int, ...]], ...]
"""Names, each with the places of its features in a frame."""
# As eGeMAPSv02 (Eyben et al. 2016) and COVAREP (Degottex et al. 2014) name their features.
_KNOWN = {
    "prosody": "F0*,VUV,Loudness*",
    "voice": "NAQ,QOQ,H1H2,PSP,MDQ,peakSlope,Rd,Rd_conf,creak,jitter*,shimmer*,HNR*,logRelF0*",
    "spectral": "MCEP_*,HMPDM_*,HMPDD_*,alphaRatio*,hammarberg*,slope*,spectralFlux*,mfcc*,F[123]*",
}


def grouped(text: str, names: Sequence[str], sources: Mapping[str, int]) -> Groups:
    """The groups that `text` describes, as in `pitch=F0*,VUV;rest=*`: a feature belongs to the first that has a pattern of its name.

    Features of several files (`sources`, as `Frontend` has them) are also meant by the name of theirs, and without a text each file's are a
    group; else these are prosody, voice quality and spectrum, as far as their features are there. Raises UserError where a pattern or a
    feature is left over.
    """
    ends = np.cumsum([0, *sources.values()]).tolist()
    of_file = {name: range(*own) for name, own in zip(sources, itertools.pairwise(ends), strict=True)}
    if not text and sources:
        return tuple((name, tuple(places)) for name, places in of_file.items())
    parts = [part.partition("=") for part in text.split(";")] if text else [(name, "=", own) for name, own in _KNOWN.items()]
    groups: dict[str, list[int]] = {}
    left = dict(enumerate(names))
    for name, _, own in parts:
        if not name or not own or name in groups:
            raise UserError(f"model.groups is '{text}', where '{name}' is no group: give each once, as in pitch=F0*,VUV;rest=*.")
        groups[name] = []
        for pattern in own.split(","):
            meant = of_file.get(pattern) or [place for place, feature in enumerate(names) if fnmatch.fnmatchcase(feature, pattern)]
            if text and not meant:
                raise UserError(
                    f"model.groups has '{pattern}' in {name}, but no feature is called that: the features are {', '.join(names)}."
                )
            groups[name] += [place for place in meant if place in left]
            left = {place: feature for place, feature in left.items() if place not in groups[name]}
    if left:
        raise UserError(f"The feature '{next(iter(left.values()))}' is in no group: give model.groups a pattern for it, as in ;rest=*.")
    if text and (empty := [name for name, places in groups.items() if not places]):
        raise UserError(f"model.groups leaves no feature for {empty[0]}: name its features before a wider pattern takes them.")
    return tuple((name, tuple(sorted(places))) for name, places in groups.items() if places)


class Modalities(nn.Module):
    """Each group's convolutions make a token of every step; in the shared layers the tokens of all groups attend to one another.

    Representations hold the groups side by side, in the order of `groups`.

    Attributes:
      near, far: as the transformer's, in model steps.
    """

    groups: Groups
    width: int
    layers: int
    heads: int
    conv_layers: int
    channels: int
    kernel: int
    near: float
    far: float
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b t d"],
        num_steps: Int[Array, "b"],
        masked: Bool[Array, "b t"] | None = None,
        deterministic: bool = True,
    ) -> Encoded:
        """Encodes; steps that are `masked` are replaced by a learned one before anything sees them."""
        batch, length, number = *features.shape[:2], len(self.groups)
        valid = valid_steps(num_steps, length)
        mask_embedding = self.param("mask_embedding", nn.initializers.normal(0.02), features.shape[-1:])
        frames = features if masked is None else jnp.where(masked[..., None], mask_embedding, features)
        frames = frames.reshape(batch, length, -1, sum(len(places) for _, places in self.groups))
        tokens = []
        for g, (_, places) in enumerate(self.groups):  # whose names may be those of one corpus's files
            x = frames[..., np.array(places)].reshape(batch, length, -1)
            for i in range(self.conv_layers):
                x = nn.relu(Convolution(self.channels, self.kernel, name=f"group_{g}_conv_{i}")(x, valid))
            tokens.append(Dense(self.width, name=f"group_{g}_projection")(x))
        # A step's tokens follow one another, so that near tokens are near in time.
        x, valid = jnp.stack(tokens, 2).reshape(batch, length * number, self.width), jnp.repeat(valid, number, 1)
        attention = functools.partial(Attention, slopes(self.heads, number * self.near, number * self.far))
        outputs = [x]
        for i in range(self.layers):
            x = Layer(attention, self.dropout, name=f"layer_{i}")(x, valid, deterministic)
            outputs.append(x)
        return Encoded(tuple(output.reshape(batch, length, -1) for output in outputs), num_steps)


def make(model: ml_collections.ConfigDict, dropout: float, frontend: Frontend) -> Modalities:
    """The encoder of `config.model`; UserError where its groups and the features do not fit."""
    groups = grouped(model.groups, frontend.names, frontend.sources)
    shape = model.width, model.layers, model.heads, model.conv_layers, model.channels, model.kernel
    return Modalities(groups, *shape, in_steps(model.near, frontend), in_steps(model.far, frontend), dropout)
