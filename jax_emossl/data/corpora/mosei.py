"""CMU-MOSEI (Zadeh et al. 2018, ACL): COVAREP features and labels as CMU distributes them."""

from jax_emossl.data.corpora import Files, data_dir


def files() -> Files:
    """COVAREP at 100 Hz, in $EMOSSL_DATA/mosei, with the standard folds of the CMU SDK."""
    folder = data_dir() / "mosei"
    return Files(str(folder / "CMU_MOSEI_COVAREP.csd"), str(folder / "CMU_MOSEI_Labels.csd"), "cmu_mosei")
