"""The plan of the house, read from its sources: which folder imports which, and what no file may have."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "wsss_afa"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
METHODS = sorted(path.name for path in (PACKAGE / "methods").iterdir() if (path / "method.py").is_file())
SHARED = {
    "base.py", "two_level.py", "clip_cam.py", "towers.py", "released_texts.py", "recipe.py", "schema.py",
    "untrusted.py", "optim.py", "first_form.py", "weights_file.py", "__init__.py",
}  # fmt: skip
"""Files of ``methods/`` that are of no method; what any other defines is its method's own."""

GROUND = {"types", "errors", "files", "__init__"}
"""Files in the root that are no commands."""
COMMANDS = {Path(name).stem for name in FILES if "/" not in name} - GROUND
"""Each composes its settings, and then imports the file of ``programs/`` that does the work."""
LOWER = {
    "errors": set(),
    "files": set(),
    "types": {"errors"},
    "ops": {"types", "errors"},
    "models": {"types", "errors", "files"},
    "losses": {"types", "errors", "ops"},
    "data": {"types", "errors", "files", "__init__"},
    "methods": {"types", "errors", "files", "losses", "ops", "models", "data"},
    "reports": {"types", "errors", "files", "ops", "data"},
    "loggers": {"types", "errors", "files", "reports"},
    "inference": {"types", "errors", "files", "methods", "ops", "data", "reports", "__init__"},
    "callbacks": {"types", "errors", "files", "methods", "ops", "data", "loggers", "reports", "__init__"},
    "cli": {"types", "errors", "files", "methods"},
}  # fmt: skip
"""Of each folder, and each file of the ground, what it may import beside its own folder."""
LOWER["web"] = {*LOWER} - {"callbacks", "loggers", "losses", "models"}  # the pages of the program app
LOWER |= {"programs": {*LOWER, "__init__"}} | {
    key: {"cli", "errors", "files", "programs"} for key in COMMANDS
}
LOWER["__init__"] = {"inference", *COMMANDS}  # when they are asked for
FRAMEWORKS = {
    "lightning": {"methods", "callbacks", "loggers", "inference", "data", "programs"},
    "hydra": {"cli", "callbacks", "methods", "reports", "programs"},
    "omegaconf": {"cli", "callbacks", "data", "methods", "reports", "programs", *COMMANDS},
    "wandb": {"loggers"},
    "gradio": {"web"},
    "PIL": {"data", "inference", "loggers", "reports", "programs"},
}
"""Which folders may import a package; data modules and readers of images live in ``data``."""
MAX_LINES = 350


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(tree: ast.AST) -> set[str]:
    return {name.split(".")[0].replace("pytorch_lightning", "lightning") for name in imports(tree)}


def own_files(tree: ast.AST) -> set[str]:
    """Files of this package that a file imports, relative to the package."""
    found = set()
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "wsss_afa":
            stems = ["/".join(parts[1:end]) for end in range(2, len(parts) + 1)]
            hits = {f"{stem}.py" for stem in stems} & set(FILES)
            folders = [
                f"{stem}/__init__.py" for stem in ("", *stems) if f"{stem}/__init__.py".lstrip("/") in FILES
            ]
            found |= hits or {folders[-1].lstrip("/")}
    return found


def room(name: str) -> str:
    """Top folder of a file, or the stem of a file in the root."""
    return name.partition("/")[0].removesuffix(".py")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_the_walk_sees_what_is_there():
    assert {"methods/base.py", "ops/par.py", "data/folder/tags.py"} <= set(FILES)
    assert "methods/afa/network.py" in own_files(TREES["methods/afa/method.py"])
    assert "afa" in METHODS
    assert "lightning" in packages(TREES["methods/base.py"])
    hidden = "def f():\n    import lightning.pytorch as pl\n    from wsss_afa.ops import par\n"
    assert packages(ast.parse(hidden)) == {"lightning", "wsss_afa"}
    assert own_files(ast.parse(hidden)) == {"ops/par.py"}
    assert own_files(ast.parse("from wsss_afa import __version__")) == {"__init__.py"}
    assert own_files(ast.parse("from wsss_afa.methods import afa")) == {"methods/afa/__init__.py"}
    assert [own_of(f"methods/{name}") for name in ("afa/network.py", "supervised.py", "base.py")] == [
        "afa", "supervised", None,
    ]  # fmt: skip


def test_the_root_holds_commands_and_the_ground():
    assert sum("/" not in name for name in FILES) <= 16
    for command in COMMANDS:
        assert any(function.name == "main" for function in functions(TREES[f"{command}.py"])), command
    work = {Path(name).stem for name in FILES if room(name) == "programs"} - {"__init__"}
    assert work == COMMANDS - {"__main__"}
    assert not [name for name in work if len(FILES[f"programs/{name}.py"].read_text().splitlines()) > 120]


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    """Commands → programs → callbacks, inference, reports, cli → methods → losses → ops … → the ground."""
    above = room(name)
    strangers = {file for file in own_files(TREES[name]) if room(file) not in LOWER[above] | {above}}
    assert not strangers


def own_of(file: str) -> str | None:
    """The method that a file of ``methods/`` belongs to: its folder, or itself where a method is one file."""
    parts = file.split("/")
    if parts[0] != "methods" or parts[1] in SHARED:
        return None
    return parts[1].removesuffix(".py")


@pytest.mark.parametrize("name", FILES)
def test_no_method_knows_another_and_nobody_else_knows_any(name):
    """What a method's files define is its own; ``recipe.py`` reads the files of the methods' authors."""
    for file in own_files(TREES[name]):
        if own_of(file) not in (None, own_of(name)):
            assert name == "methods/recipe.py"
            assert Path(file).name == "released.py"


@pytest.mark.parametrize("package", FRAMEWORKS)
def test_frameworks_live_where_the_plan_has_them(package):
    users = {room(name) for name, tree in TREES.items() if package in packages(tree)}
    assert users <= FRAMEWORKS[package]


def test_models_and_operators_know_tensors_alone():
    for name, tree in TREES.items():
        if room(name) in ("models", "ops", "losses"):
            assert not packages(tree) & {"lightning", "hydra", "omegaconf", "wandb", "PIL"}, name


def test_optional_packages_are_imported_where_they_are_used():
    for name, tree in TREES.items():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not packages(top) & {"wandb", "onnx", "onnxruntime", "optuna"}, name


def test_nothing_imports_in_circles():
    eager = {name: own_files(tree) for name, tree in TREES.items() if name != "__init__.py"}
    TopologicalSorter(eager).prepare()


def test_names_say_what_is_inside():
    stems = {part for name in FILES for part in Path(name).with_suffix("").parts}
    assert not stems & {"utils", "util", "common", "helpers", "misc", "registry"}
    assert not (stems - {"types", "__init__", "__main__"}) & set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", FILES)
def test_constructors_name_their_arguments(name):
    """A misspelt configuration key composes silently; only a constructor without ** catches it."""
    takers = [f.lineno for f in functions(TREES[name]) if f.name == "__init__" and f.args.kwarg]
    assert not takers


def targets() -> dict[str, str]:
    """Dotted names that the configuration instantiates, and a file that does."""
    found = {}
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        for target in re.findall(r"_target_:\s*(wsss_afa[\w.]+)", path.read_text(encoding="utf-8")):
            found[target] = path.name
    return found


@pytest.mark.skipif(not (ROOT / "conf").is_dir(), reason="no conf/ beside the tests")
def test_configured_targets_exist_and_name_their_arguments():
    assert targets()
    for target, file in targets().items():
        module, _, wanted = target.removeprefix("wsss_afa.").rpartition(".")
        tree = TREES[module.replace(".", "/") + ".py"]
        defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert wanted in defined, f"{target} in {file}"
        if isinstance(defined[wanted], ast.FunctionDef):
            assert defined[wanted].args.kwarg is None, f"{target} in {file}"


@pytest.mark.parametrize("name", [name for name, path in FILES.items() if path.stat().st_size])
def test_everything_public_is_documented(name):
    tree = TREES[name]
    assert ast.get_docstring(tree), "the module"
    public = [
        node
        for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
        for node in owner.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert not [node.name for node in public if not ast.get_docstring(node)]


def test_importing_the_core_prints_nothing_and_loads_no_framework():
    names = [
        f"wsss_afa.{name.removesuffix('.py').replace('/', '.')}"
        for name in FILES
        if room(name) in ("models", "ops", "losses") and "__init__" not in name
    ]
    code = (
        f"import sys, torch; threads = torch.get_num_threads()\nimport {', '.join(names)}\n"
        "assert not {'lightning', 'pytorch_lightning', 'hydra'} & set(sys.modules)\n"
        "assert torch.get_num_threads() == threads\n"
        "assert torch.get_default_dtype() == torch.float32\n"
        "assert torch.is_grad_enabled()\n"
        "assert not torch.backends.cudnn.benchmark\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
