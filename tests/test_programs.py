import types
from pathlib import Path

import jax
import pytest

from jax_emossl import programs


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """What JAX would be told, in a process that keeps no programs yet."""
    made = types.SimpleNamespace(jax_compilation_cache_dir=None, update=lambda name, value: setattr(made, name, value))
    monkeypatch.setattr(jax, "config", made)
    monkeypatch.setenv("EMOSSL_CACHE", str(tmp_path))
    return made


def test_programs_are_kept_in_the_cache_but_where_the_user_says_another_folder(settings, tmp_path):
    programs.keep_compiled()
    assert Path(settings.jax_compilation_cache_dir).parent == tmp_path / "xla"
    settings.jax_compilation_cache_dir = "elsewhere"
    programs.keep_compiled()
    assert settings.jax_compilation_cache_dir == "elsewhere"


def test_processors_that_can_do_other_things_have_folders_of_their_own(settings, monkeypatch):
    folders = []
    for flags in ("flags : sse avx2", "flags : sse avx2", "flags : sse avx512f", "nothing known"):
        monkeypatch.setattr(Path, "read_text", lambda self, errors, flags=flags: f"processor : 0\n{flags}\n")
        settings.jax_compilation_cache_dir = None
        programs.keep_compiled()
        folders.append(settings.jax_compilation_cache_dir)
    assert folders[0] == folders[1] and len({*folders}) == 3


def test_a_program_that_was_forgotten_is_made_again():
    made = []

    @jax.jit
    def program(x):
        made.append(x)
        return x + 1

    for _ in range(2):
        program(1.0)
        program(1.0)
        programs.forget()
    assert len(made) == 2
