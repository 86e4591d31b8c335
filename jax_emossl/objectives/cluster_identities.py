"""Pretraining: tell which cluster of its recording every masked step belongs to.

As HuBERT's first round (Hsu et al. 2021, arXiv 2106.07447), but with k-means within each recording: all identities among which one is
to be told are the same speaker's, and those of two recordings have nothing to do with one another. So an identity is not learned
by heart but named by its centroid.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from sklearn.cluster import KMeans

from jax_emossl.data.batches import Segments
from jax_emossl.data.frontend import Frontend
from jax_emossl.data.prepared import Corpus
from jax_emossl.layers import Dense
from jax_emossl.masking import span_masks
from jax_emossl.objectives import Batch, Params, Stepwise, Variables, summed

_TEMPERATURE = 0.1  # of cosine similarities, as HuBERT's
_MOST = 10_000  # model steps of a recording that are clustered


def clusters_of(segments: Segments, number: int) -> dict[str, np.ndarray]:
    """At most so many clusters of every recording's model steps, features as the encoder sees them; always the same.

    Returns:
      `centroids` (R, K, D) and their `share` (R, K) of the recording's steps, 0 where a recording has fewer.
    """
    centroids = np.zeros((segments.num_recordings, number, segments.dimension), np.float32)
    share = np.zeros(centroids.shape[:2], np.float32)
    for place in np.unique(segments.recording):
        steps = np.concatenate([segments.steps(i) for i in np.flatnonzero(segments.recording == place)])
        steps = steps[:: -(-len(steps) // _MOST)]
        found = KMeans(min(number, len(np.unique(steps, axis=0))), n_init=1, random_state=0).fit(steps)
        centroids[place, : found.n_clusters] = found.cluster_centers_
        share[place] = np.bincount(found.labels_, minlength=number) / len(steps)
    return {"centroids": centroids, "share": share}


class _Model(nn.Module):
    encoder: nn.Module

    @nn.compact
    def __call__(self, features, num_steps, masked, centroids, deterministic):
        output = self.encoder(features, num_steps, masked, deterministic).layers[-1]
        told = Dense(output.shape[-1], name="head")(nn.LayerNorm()(output))
        names = Dense(output.shape[-1], name="names")(centroids)
        unit = [x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12) for x in (told, names)]
        return jnp.einsum("btw,bkw->btk", *unit) / _TEMPERATURE


@dataclasses.dataclass(frozen=True)
class ClusterIdentities(Stepwise):
    """Classification of the masked steps, among the clusters of their recording.

    Attributes:
      ratio: share of the steps that is masked.
      span: model steps masked in one piece.
      clusters: of every recording.
    """

    ratio: float
    span: int
    clusters: int
    of_recordings: bool = True

    def init(self, key: jax.Array, example: Batch) -> Params:
        features = example["features"]
        centroids = jnp.zeros((len(features), self.clusters, features.shape[-1]))
        return _Model(self.encoder).init(key, features, example["num_steps"], None, centroids, True)["params"]

    def begin(self, params: Params, segments: Segments) -> Params:
        """The clusters of every recording, a held-out one's too: each is used for itself alone."""
        return clusters_of(segments, self.clusters)

    def sums(self, variables: Variables, batch: Batch, keys: jax.Array, dropout: jax.Array | None) -> dict[str, Float[Array, "b"]]:
        """Cross-entropy and hits at the masked steps, and those of going by how often the recording has each identity."""
        features, num_steps = batch["features"], batch["num_steps"]
        centroids, share = (variables["constants"][name][batch["recording"]] for name in ("centroids", "share"))
        absent = jnp.where(share > 0, 0.0, jnp.inf)[:, None]
        distance = jnp.sum(centroids**2, -1)[:, None] - 2 * jnp.einsum("btd,bkd->btk", features, centroids)
        identity = jnp.argmin(distance + absent, -1)
        masked, rngs = span_masks(keys, num_steps, features.shape[1], self.ratio, self.span), None
        if dropout is not None:
            rngs = {"dropout": dropout}
        inputs = features, num_steps, masked, centroids, dropout is None
        scores = _Model(self.encoder).apply({"params": variables["params"]}, *inputs, rngs=rngs) - absent
        guess = jnp.broadcast_to(jnp.log(share)[:, None], scores.shape)
        loss, of_guess = (optax.softmax_cross_entropy_with_integer_labels(own, identity) for own in (scores, guess))
        hit, hit_of_guess = (own.argmax(-1) == identity for own in (scores, guess))
        return summed(masked, loss=loss, loss_of_constant=of_guess, accuracy=hit, accuracy_of_constant=hit_of_guess)


def make(config, encoder: nn.Module, frontend: Frontend, corpus: Corpus) -> ClusterIdentities:
    """The objective with the fields `config`."""
    return ClusterIdentities(encoder, config.ratio, max(1, frontend.steps(config.span)), config.clusters)
