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
from jax_emossl import encoders, main, metrics, report, workdir  # noqa: F401
from jax_emossl.errors import UserError
from jax_emossl.tasks import train

folder = Path(sys.argv[1])
config = ConfigDict(json.loads(sys.stdin.read()))
workdir.enter(folder / "run", config)
train.run(config, folder / "run")
config.data.loader = "tf.data"
try:
    train.run(config, folder / "other")
except UserError as error:
    print("refused:", error)
"""


def test_model_metrics_and_training_in_memory_need_no_tensorflow(tiny_config, tmp_path):
    (tmp_path / "other").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        input=json.dumps(tiny_config("scratch").to_dict()),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "refused: data.loader is 'tf.data', but TensorFlow is not installed: install it or" in done.stdout
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["runs"]
    assert [row["arm"] for row in rows] == ["scratch", "constant"] * 2 and rows[0]["metrics"]["mae"] > 0
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
