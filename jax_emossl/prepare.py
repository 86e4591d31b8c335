"""Prepare a corpus: frames, labels and folds in, plain memory-mappable arrays out."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jax_emossl.data import corpus
from jax_emossl.errors import one_sentence

_WRITES = """
what DIR holds, per fold (train, valid, test, and train_unlabelled with --unlabelled):
  frames.npy    (N, F) float32  cleaned frames of all segments, neither normalised nor pooled
  offsets.npy   (S + 1,) int64  segment s holds frames[offsets[s]:offsets[s + 1]]
  labels.npy    (S, E) float32  intensities in [0, 3]
  segments.csv  recording,index,start,end   in seconds; index is the label row
and corpus.json: feature and emotion names, hop, normalisation statistics, and an account of every
segment dropped, value repaired and intensity clipped. DIR appears whole or not at all.

example, CMU-MOSEI with its standard folds (they come with: pip install cmu-multimodal-sdk):
  python -m jax_emossl.prepare --features CMU_MOSEI_COVAREP.csd --labels CMU_MOSEI_Labels.csd \\
      --folds cmu_mosei --out prepared/mosei --name mosei --unlabelled
  python -m jax_emossl.main --config=configs/pretrain.py:mosei --config.data.prepared=prepared/mosei
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jax_emossl.prepare",
        description="Cuts the frames of a .csd file to the labelled segments of another, cleans them, and writes them\n"
        "by fold. One recording at a time is in memory.",
        epilog=_WRITES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    required = parser.add_argument_group("required")
    required.add_argument("--features", required=True, metavar="F.csd", help="frames of every recording")
    required.add_argument("--labels", required=True, metavar="L.csd", help="labelled segments: one row of intensities each")
    required.add_argument(
        "--folds", required=True, help='JSON file {"train": [recording, ...], "valid": [...], "test": [...]}, or cmu_mosei'
    )
    required.add_argument("--out", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--words", default="", metavar="W.csd", help="average the frames of each word of this file first")
    parser.add_argument("--label-names", default="", metavar="A,B,C", help="names of the label columns, where L.csd has none")
    parser.add_argument(
        "--unlabelled", action="store_true", help="keep also the training recordings' frames outside any segment, for pretraining"
    )
    parser.add_argument("--tfds", action="store_true", help="write also DIR/tfds, for tfds.builder_from_directory")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it holds a prepared corpus")
    parser.add_argument("--name", default="", help="name of the corpus in results (default: F)")
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """Prepares what the arguments say and prints the summary.

    Raises:
      UserError: as `corpus.prepare`.
    """
    args = _parser().parse_args(argv)
    summary = corpus.prepare(
        *(args.features, args.labels, args.folds, args.out),
        words=args.words,
        label_names=[name.strip() for name in args.label_names.split(",") if name.strip()],
        unlabelled=args.unlabelled,
        overwrite=args.overwrite,
        name=args.name,
        as_tfds=args.tfds,
    )
    print(corpus.describe(summary))
    print(f"Prepared: {args.out}" + (f"; for tfds.builder_from_directory: {Path(args.out) / 'tfds'}" if args.tfds else ""))


def main() -> None:
    """Command line; exits with 2 and one sentence on a user's mistake, 130 when interrupted."""
    # A job that is told to stop leaves as little behind as one that is interrupted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with one_sentence():
            run()
    except KeyboardInterrupt:
        print("Interrupted: nothing was written.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
