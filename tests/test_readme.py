import json
import math
import re
from pathlib import Path

import make_comparison
import pytest

from jax_emossl import readme
from jax_emossl.comparison import Comparison
from jax_emossl.errors import UserError
from jax_emossl.significance import Estimate

ROOT = Path(__file__).parents[1]
NAMES = re.findall(r"<!-- results (\w+) -->", (ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return Comparison(make_comparison.write(tmp_path_factory.mktemp("made-up")))


@pytest.mark.parametrize("name", NAMES)
def test_every_table_of_readme_is_that_of_its_file_and_names_its_commit(name):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    kept = json.loads((ROOT / readme.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert readme.inserted(page, name, readme.rendered(kept), ROOT / "README.md") == page
    assert re.fullmatch(r"[0-9a-f]{7,}", kept["commit"])


def test_tables_stand_between_their_markers_and_nothing_else_changes(comparison, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("Before.\n<!-- results other -->\nkept\n<!-- end -->\n<!-- results mine -->\nold\n<!-- end -->\nAfter.\n")
    assert str(page) in readme.update(page, "mine", comparison)
    text = page.read_text()
    assert (
        text.startswith("Before.\n<!-- results other -->\nkept\n<!-- end -->\n")
        and text.endswith("<!-- end -->\nAfter.\n")
        and "old" not in text
    )
    kept = json.loads((tmp_path / readme.FOLDER / "mine.json").read_text())
    assert readme.rendered(kept) in text
    estimate = comparison.estimate("", "pretrained", 60, "uar").value
    gain = comparison.difference("", "pretrained", "scratch", 60, "uar")
    (row,) = [line for line in text.splitlines() if line.startswith("| 60 |")][:1]
    assert f"**{estimate:.3f}**" in row and row.endswith(f"| {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] |")
    assert (
        "demo (SYNTHETIC), 8 test recordings, mean over 2 seeds; made by `python -m jax_emossl.main --config=x.py` at commit unknown"
        in text
    )


def test_what_is_not_defined_is_a_dash(comparison, monkeypatch):
    estimate = comparison.estimate
    monkeypatch.setattr(comparison, "estimate", lambda *of: Estimate(math.nan, math.nan, math.nan) if 30 in of else estimate(*of))
    summary = readme.summarised(comparison)
    json.dumps(summary, allow_nan=False)
    assert "| 30 | - | - |" in readme.rendered(summary)


def test_a_page_without_the_markers_is_refused(comparison, tmp_path):
    with pytest.raises(UserError, match="README.md has no lines '<!-- results mine -->' and '<!-- end -->'"):
        readme.update(tmp_path / "README.md", "mine", comparison)
