"""The command that prepares a corpus: frames, labels and folds in (`data/corpus.py`), memory-mapped arrays out (`data/prepared.py`)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jax_emossl.data import corpus, prepared
from jax_emossl.data.account import describe
from jax_emossl.errors import interruptible

_EXAMPLE = """
example, CMU-MOSEI with its standard folds (they come with: pip install cmu-multimodal-sdk):
  python -m jax_emossl.prepare --features CMU_MOSEI_COVAREP.csd --labels CMU_MOSEI_Labels.csd \\
      --folds cmu_mosei --out prepared/mosei --name mosei --unlabelled
  python -m jax_emossl.main --config=configs/pretrain.py:mosei --config.data.prepared=prepared/mosei
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jax_emossl.prepare",
        description="Cuts the frames of a .csd file to the labelled segments of another, cleans them, and writes them\n"
        "by fold. One recording at a time is in memory. DIR appears whole or not at all.",
        epilog=f"{prepared.__doc__}{_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    required = parser.add_argument_group("required")
    required.add_argument(
        "--features",
        required=True,
        action="append",
        metavar="F.csd",
        help="frames of every recording; given again, another file (words, faces, ...), whose values are averaged over the frames of the "
        "first, or repeated on them",
    )
    parser.add_argument(
        "--labels",
        default="",
        metavar="L.csd",
        help="labelled segments: one row of intensities each; without, the corpus can be pretrained on",
    )
    required.add_argument(
        "--folds",
        required=True,
        help='JSON file {"train": [recording, ...], "valid": [...], "test": [...]}, or cmu_mosei (a pretraining needs no test)',
    )
    required.add_argument("--out", required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--speakers",
        default="",
        metavar="S.json",
        help='JSON file {"recording": "speaker", ...}: statistics, folds and intervals then go by speaker; recordings that it does not name '
        "count for themselves",
    )
    parser.add_argument("--words", default="", metavar="W.csd", help="average the frames of each word of this file first")
    parser.add_argument("--label-names", default="", metavar="A,B,C", help="names of the label columns, where L.csd has none")
    parser.add_argument(
        "--unlabelled", action="store_true", help="keep also the training recordings' frames outside any segment, for pretraining"
    )
    parser.add_argument("--tfds", dest="as_tfds", action="store_true", help="write also DIR/tfds, for tfds.builder_from_directory")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it holds a prepared corpus")
    parser.add_argument("--name", default="", help="name of the corpus in results (default: F, of the first)")
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """Prepares what the arguments say and prints the summary; UserError as of `corpus.build`."""
    args = _parser().parse_args(argv)
    args.label_names = [name.strip() for name in args.label_names.split(",") if name.strip()]
    print(describe(corpus.build(**vars(args))))
    print(f"Prepared: {args.out}" + (f"; for tfds.builder_from_directory: {Path(args.out) / 'tfds'}" if args.as_tfds else ""))


def main() -> None:
    """Command line; exits with 2 and one sentence on a user's mistake, 130 when interrupted."""
    with interruptible("nothing was written."):
        run()


if __name__ == "__main__":
    main()
