import json
import os
import subprocess
import sys

from conftest import ROOT

SCRIPT = """
import json, sys
sys.modules["tensorflow"] = None  # as if it were not installed

from pathlib import Path
from ml_collections import ConfigDict
from jax_emossl import main, metrics, model, report, workdir  # noqa: F401
from jax_emossl.errors import UserError
from jax_emossl.tasks import train

folder = Path(sys.argv[1])
for name, config in json.loads(sys.stdin.read()).items():
    config = ConfigDict(config)
    workdir.enter(folder / name, config)
    train.run(config, folder / name)
config.data.loader = "tf.data"
try:
    train.run(config, folder / "other")
except UserError as error:
    print("refused:", error)
"""


def test_model_metrics_and_training_in_memory_need_no_tensorflow(tiny_config, pretraining, tmp_path):
    configs = {"scratch": tiny_config("scratch").to_dict(), "pretrain": tiny_config("pretrain").to_dict()}
    (tmp_path / "other").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], input=json.dumps(configs), env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "refused: data.loader is 'tf.data', but TensorFlow is not installed: install it or give --config.data.loader=memory." in done.stdout
    rows = [json.loads((folder / "results.json").read_text())["runs"] for folder in (tmp_path / "pretrain", pretraining)]
    assert rows[0] == rows[1]
    assert json.loads((tmp_path / "scratch" / "results.json").read_text())["runs"][0]["metrics"]["mae"] > 0
    assert list((tmp_path / "scratch").glob("events.out.tfevents.*"))
