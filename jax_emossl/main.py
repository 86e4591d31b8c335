"""Pretrain, fine-tune, evaluate and compare: what is done is decided by the config.

Examples:
  python -m jax_emossl.main --config=configs/quickstart.py
  python -m jax_emossl.main --config=configs/pretrain.py:nemo --workdir=runs/pretrain
  python -m jax_emossl.main --config=configs/finetune.py:nemo --config.init_from=runs/pretrain --config.num_labels=60 --workdir=runs/finetune
  python -m jax_emossl.main --config=configs/scratch.py:nemo --config.num_labels=60
  python -m jax_emossl.main --config=configs/evaluate.py --config.init_from=runs/finetune --config.fold=test

The name after the colon is the corpus: demo (synthetic, the default), nemo, ravdess, mosei. The config file lists its fields
with their meaning; any can be set with --config.FIELD=VALUE. --dry_run prints them all as they would be used, what the command
would read, train and write, and an estimate of time and memory, and stops.
A run started again in the same workdir goes on where it stopped. Exit codes: 0 done, 2 a mistake in the
input (one sentence says which), 75 stopped by SIGTERM or SIGINT with everything saved: run the command again.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from jax_emossl import config as fields
from jax_emossl import memory, preemption
from jax_emossl import workdir as workdirs
from jax_emossl.errors import UserError, one_sentence

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with the corpus after a colon: configs/pretrain.py:nemo.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what the command would read, train and write, and how long that takes; then stop.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Of several processes: HOST:PORT of the first, which all can reach.")
_INSIST = flags.DEFINE_bool("insist", False, "Go on in a workdir although its config differs.")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes run this together; 1 also where a cluster is detected.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, counted from 0.", lower_bound=0)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config>-<time> if not given.")


def run(argv: Sequence[str]) -> None:
    """Runs the task that the config names."""
    if len(argv) > 1:
        raise UserError(f"The argument '{argv[1]}' is not understood: fields are set with --config.FIELD=VALUE.")
    config, flag = _CONFIG.value, flags.FLAGS["config"]
    if config is None:
        raise UserError("No config is given: name one with --config=configs/quickstart.py (--help shows more).")
    given = config_flags.get_override_values(flag)
    chosen = fields.resolve(config, given)
    fields.check(config, given)
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else workdirs.default(flag.config_filename)
    if _DRY_RUN.value:
        from jax_emossl import dry_run  # brings JAX along, which --help and mistakes need not wait for

        print("\n".join([*chosen, *dry_run.describe(config, workdir)]))
        return
    from jax_emossl import processes, programs

    processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    programs.keep_compiled()
    with processes.bound():
        processes.check_alike(lambda: {**processes.code(), **fields.flat(workdirs.plain(config))})
        processes.of_first(lambda: workdirs.enter(workdir, config, _INSIST.value))
        preemption.install()
        print("\n".join([f"{config.task} in {workdir}", *chosen]), flush=True)
        importlib.import_module(f"jax_emossl.tasks.{config.task}").run(config, workdir)
    print(f"Results: {workdir / 'results.json'}")


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; a mistake in them is the user's."""
    _let_configs_import_one_another(argv)
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.task, _CONFIG.value.data  # a file that cannot be loaded says so only when it is looked into
        return rest
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split()).rstrip('.')}: the config file lists its fields, --help the flags.") from error
    except (AttributeError, KeyError) as error:
        for name in (argument.lstrip("-").split("=")[0] for argument in argv):
            if name.startswith("config.") and any(f"'{part}" in str(error) for part in name.split(".")[1:]):
                raise UserError(f"There is no config field {name}{fields.guess(error)}: the config file lists its fields.") from error
        raise UserError(
            f"--config names a file without a get_config() that makes a config ({error}): name one of those in configs."
        ) from error
    except Exception as error:  # a config is a program, which may fail in any way
        raise UserError(
            f"The config cannot be loaded ({str(error).strip().splitlines()[-1].strip()}): name one of the files in configs."
        ) from error


def _let_configs_import_one_another(argv: Sequence[str]) -> None:
    """Where a config lies in DIR/configs, `from configs import ...` finds DIR, wherever the command was started."""
    for name, value in zip(argv, [*argv[1:], ""], strict=True):
        flag, _, file = name.lstrip("-").partition("=")
        if flag == "config" and name.startswith("-"):
            root = str(Path((file or value).split(":")[0]).absolute().parent.parent)
            sys.path[:] = [root, *(path for path in sys.path if path != root)]


def main() -> None:
    """Command line; exits with 2 and one sentence on a user's mistake."""
    logging.set_verbosity(logging.ERROR)
    try:
        with one_sentence():
            app.run(run, flags_parser=_parse)
    except preemption.Preempted:
        print("Stopped on request: run the same command again to go on.", file=sys.stderr)
        sys.exit(preemption.EXIT_CODE)


if __name__ == "__main__":
    memory.keep_freed()
    main()
