"""The imports within the package run one way, and TensorFlow is imported late, in two files."""

import ast
import graphlib

from conftest import ROOT

FILES = {".".join(path.with_suffix("").relative_to(ROOT).parts): path for path in sorted((ROOT / "jax_emossl").rglob("*.py"))}
MODULES = {name.removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
WITH_TENSORFLOW = {"jax_emossl.data.pipeline", "jax_emossl.data.tfds"}


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that a module imports, anywhere in it: `from a import b` is a.b, which may be a module or lie in one."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(name: str) -> str | None:
    """The module of the package that a dotted name is or lies in."""
    return next((part for part in (name, name.rpartition(".")[0]) if part in MODULES), None)


def test_no_module_is_imported_by_what_it_imports():
    graph = {module: {module_of(name) for name in imported(tree)} - {None} for module, tree in MODULES.items()}
    assert graph["jax_emossl.prepare"] >= {"jax_emossl.data.corpus", "jax_emossl.errors"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_tensorflow_is_imported_in_functions_of_two_modules():
    def of_tensorflow(tree):
        return sorted(name for name in imported(tree) if name.startswith("tensorflow"))

    assert {module for module, tree in MODULES.items() if of_tensorflow(tree)} == WITH_TENSORFLOW
    for module in WITH_TENSORFLOW:
        outside = ast.Module([node for node in MODULES[module].body if not isinstance(node, ast.FunctionDef)], [])
        assert not of_tensorflow(outside), module
