"""CMU-MOSEI (Zadeh et al. 2018, ACL): COVAREP features and labels as CMU distributes them."""

from jax_emossl.data.corpora import Files, data_dir

SETTINGS = {
    "compare.label_counts": (0.002, 0.01, 0.05, 0.2, 0),  # shares of its 16,331 training segments
    "finetune.train.crop": 8.0,  # s; sentences of 7 s, of which a short piece may say nothing; the longest have 109 s
}


def files() -> Files:
    """COVAREP at 100 Hz, in $EMOSSL_DATA/mosei, with the standard folds of the CMU SDK."""
    folder = data_dir() / "mosei"
    return Files(str(folder / "CMU_MOSEI_COVAREP.csd"), str(folder / "CMU_MOSEI_Labels.csd"), "cmu_mosei")
