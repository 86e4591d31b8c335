"""Pretrain, fine-tune, evaluate and compare: what is done is decided by the config.

Examples:
  python -m jax_emossl.main --config=configs/quickstart.py
  python -m jax_emossl.main --config=configs/pretrain.py:nemo --workdir=runs/pretrain
  python -m jax_emossl.main --config=configs/finetune.py:nemo --config.init_from=runs/pretrain --config.num_labels=60 --workdir=runs/finetune
  python -m jax_emossl.main --config=configs/scratch.py:nemo --config.num_labels=60
  python -m jax_emossl.main --config=configs/evaluate.py --config.init_from=runs/finetune --config.fold=test

The name after the colon is the corpus: demo (synthetic, the default), nemo, mosei. Any field of the config
can be set with --config.FIELD=VALUE; configs/default.py lists the fields with their meaning.
A run started again in the same workdir goes on where it stopped. Exit codes: 0 done, 2 a mistake in the
input (one sentence says which), 75 stopped by SIGTERM or SIGINT with everything saved: run the command again.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from jax_emossl import preemption, tasks
from jax_emossl import workdir as workdirs
from jax_emossl.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with the corpus after a colon: configs/pretrain.py:nemo.")
_INSIST = flags.DEFINE_bool("insist", False, "Go on in a workdir although its config differs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config>-<time> if not given.")


def run(argv: Sequence[str]) -> None:
    """Runs the task that the config names."""
    if len(argv) > 1:
        raise UserError(f"The argument '{argv[1]}' is not understood: fields are set with --config.FIELD=VALUE.")
    config = _CONFIG.value
    if config is None:
        raise UserError("No config is given: name one with --config=configs/quickstart.py (--help shows more).")
    names = [module.name for module in pkgutil.iter_modules(tasks.__path__)]
    if config.task not in names:
        raise UserError(f"task is '{config.task}': choose one of {', '.join(names)}.")
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else workdirs.default(flags.FLAGS["config"].config_filename)
    workdirs.enter(workdir, config, _INSIST.value)
    preemption.install()
    print(f"{config.task} in {workdir}", flush=True)
    importlib.import_module(f"{tasks.__name__}.{config.task}").run(config, workdir)
    print(f"Results: {workdir / 'results.json'}")


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; a mistake in them is the user's."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.task  # a file that cannot be loaded says so only when it is looked into
        return rest
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split()).rstrip('.')}: configs/default.py lists the fields, --help the flags.") from error
    except (AttributeError, KeyError) as error:
        raise UserError(f"{_unknown_field(argv, error)}: configs/default.py lists the fields.") from error
    except (OSError, ImportError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"The config cannot be loaded ({str(error).strip().splitlines()[-1].strip()}): name one of the files in configs."
        ) from error


def _unknown_field(argv: Sequence[str], error: Exception) -> str:
    given = [a.lstrip("-").split("=")[0] for a in argv if a.lstrip("-").startswith("config.")]
    blamed = [name for name in given if name.split(".")[-1] in str(error)] or given
    return f"There is no config field {' or '.join(blamed)}"


def main() -> None:
    """Command line; exits with 2 and one sentence on a user's mistake."""
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(run, flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename or 'A file'} cannot be read or written: {error.strerror or error}.", file=sys.stderr)
        sys.exit(2)
    except preemption.Preempted:
        print("Stopped on request: run the same command again to go on.", file=sys.stderr)
        sys.exit(preemption.EXIT_CODE)


if __name__ == "__main__":
    main()
