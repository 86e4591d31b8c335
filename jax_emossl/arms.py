"""The arms of a comparison: ways to answer from N labels. Adding one over the mechanisms there are is one entry here.

An arm reads what its `reads` name: an encoder that was `pretrained`, a `random` one that never was, `functionals`, or their principal
components on all training segments, labelled or not (`pca`).
A `tuned` arm trains that encoder and a head (`tuned.py`); a `linear` one reads fixed vectors out (`linear.py`).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to answer.

    Attributes:
      mechanism: tuned | linear | constant.
      reads: sources of its vectors, side by side.
      style: how figures draw it; colours of Okabe & Ito, which colour-blind readers tell apart.
      baseline: whether the report compares `pretrained` with it.
      self_trained: whether a linear arm learns anew from what it says of the unlabelled training segments (pseudo-labels).
    """

    name: str
    mechanism: str
    reads: tuple[str, ...]
    style: dict[str, str]
    baseline: bool = False
    self_trained: bool = False

    @property
    def needs_pretraining(self) -> bool:
        return "pretrained" in self.reads


def _style(color: str, marker: str, linestyle: str) -> dict[str, str]:
    return {"color": color, "marker": marker, "linestyle": linestyle}


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("pretrained", "tuned", ("pretrained",), _style("#0072B2", "o", "-")),
        Arm("frozen", "linear", ("pretrained",), _style("#56B4E9", "v", "-.")),
        Arm("pretrained+functionals", "linear", ("pretrained", "functionals"), _style("#CC79A7", "D", "-")),
        Arm("scratch", "tuned", ("random",), _style("#D55E00", "s", "--"), baseline=True),
        Arm("random", "linear", ("random",), _style("#999999", "x", "--")),
        Arm("functionals", "linear", ("functionals",), _style("#009E73", "^", "-."), baseline=True),
        Arm("pca", "linear", ("pca",), _style("#E69F00", "<", ":"), baseline=True),
        Arm("pseudo-labels", "linear", ("functionals",), _style("#000000", ">", "--"), baseline=True, self_trained=True),
        Arm("constant", "constant", (), _style("#555555", "", ":")),
    )
}
"""All arms by name, in the order of a report."""
