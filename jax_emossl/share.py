"""The command that makes a folder of a trained model, as model hubs expect it.

FOLDER/model.safetensors   weights, bit-identical to the run's; nothing of any one recording
FOLDER/config.json         all that belongs to them
FOLDER/README.md           the model card: corpus, licence, labels, normalisation, results, intended use and limits
FOLDER/program.stablehlo   the whole model for JAX alone, checked against the live one (not of a pretraining)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import jinja2
import numpy as np

from jax_emossl import __version__, portable, readme, results
from jax_emossl.comparison import Comparison
from jax_emossl.data.prepared import new_folder
from jax_emossl.errors import UserError, interruptible
from jax_emossl.model import Model, load_model

CARD, PROGRAM = "README.md", "program.stablehlo"
_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # of scores, whose statistics are summed in another order, by the products' type
_UNKNOWN = "unknown"


def run(argv: Sequence[str] | None = None) -> None:
    """Shares what the arguments say; UserError where there is no model, or the folder exists."""
    parser = argparse.ArgumentParser(
        prog="python -m jax_emossl.share", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, metavar="RUN", help="workdir of a training")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to create")
    parser.add_argument("--licence", default=_UNKNOWN, help="of the weights, as hubs spell it, for example cc-by-nc-sa-4.0")
    parser.add_argument(
        "--comparison", type=Path, metavar="DIR", help="workdir of a comparison, whose table with intervals the card shall show"
    )
    args = parser.parse_args(argv)
    model = load_model(args.workdir)
    shown = _results(args.workdir, args.comparison)
    with new_folder(args.out) as folder:
        model.save(folder)
        difference = ""
        if model.card.head:
            content = portable.exported(model)
            (folder / PROGRAM).write_bytes(content)
            difference = f"; {PROGRAM} differs from the live model by at most {_difference(model, content):.1e}"
        (folder / CARD).write_text(_card(model, args.out.name, args.licence, shown), encoding="utf-8")
    fill = "" if args.licence != _UNKNOWN else f" Fill in the licence in {args.out / CARD}, or give --licence."
    print(f"Model: {args.out}{difference}.{fill}")


def _card(model: Model, name: str, licence: str, shown: str) -> str:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("jax_emossl"), autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    card = templates.get_template("model_card.md").render(
        model=model, card=model.card, name=name, licence=licence, results=shown, version=__version__
    )
    return card.strip() + "\n"


def _results(run: Path, comparison: Path | None) -> str:
    """The table of a comparison, with its intervals, or the run's own rows, which have none."""
    if comparison:
        return readme.rendered(readme.summarised(Comparison(comparison)))
    file = run / results.RESULTS_FILE
    if not file.is_file():
        return "Not measured."
    rows = results.read(file)["runs"]
    return f"```\n{results.table(rows)}\n```\n\nOne training, so without intervals; `share --comparison` shows those of a comparison."


def _difference(model: Model, content: bytes) -> float:
    """The largest difference of scores between the exported program and the live model, on noise of several lengths.

    UserError where it is more than rounding.
    """
    frontend, rng = model.card.frontend, np.random.default_rng(0)
    mean, deviation = np.nan_to_num(frontend.train.mean), np.sqrt(np.nan_to_num(frontend.train.variance))
    per_step = frontend.frames_per_step
    counts = np.array([40 * per_step, 40 * per_step - 1, 7 * per_step + 1, 1], np.int32)
    frames = rng.normal(mean, deviation, (len(counts), counts.max(), len(frontend.names))).astype(np.float32)
    live = model([own[:count] for own, count in zip(frames, counts, strict=True)])["scores"]
    made = jax.export.deserialize(bytearray(content)).call(frames, counts)["scores"]
    difference = float(np.abs(np.asarray(made) - live).max())
    if not difference <= _TOLERANCE[model.card.model.get("dtype", "float32")] * (1 + np.abs(live).max()):
        raise UserError(f"The exported program differs from the model by {difference:.2g}: report this, the folder was not written.")
    return difference


def main() -> None:
    """Command line; exits with 2 and one sentence on a user's mistake, 130 when interrupted."""
    with interruptible("nothing was written."):
        run()


if __name__ == "__main__":
    main()
