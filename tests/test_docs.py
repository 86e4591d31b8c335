"""The pages of docs name files that there are."""

import re

from conftest import ROOT


def test_every_file_named_is_there():
    pages = sorted((ROOT / "docs").glob("*.md"))
    named = {name for page in pages for name in re.findall(r"`([\w/]+(?:\.py|/))`", page.read_text(encoding="utf-8"))}
    assert len(named) > 40
    assert not [name for name in named if not (ROOT / name).exists() and not (ROOT / "jax_emossl" / name).exists()]
