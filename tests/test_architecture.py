"""The plan of the package, read from its sources: who imports whom, and what no file may have."""

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

ENTRY_POINTS = {
    f"{name}.py"
    for name in (
        "train",
        "evaluate",
        "predict",
        "pseudo_labels",
        "export",
        "benchmark",
        "prepare",
        "inspect",
        "shard",
        "voc_server",
        "oracle",
        "sweep_report",
    )
}
LIGHTNING = {
    "lightning_module.py",
    "callbacks.py",
    "data/datamodule.py",
    "train.py",
    "evaluate.py",
    "pseudo_labels.py",
    "threshold_sweep.py",
    "checkpointing.py",
    "dashboard.py",
    "dashboard_monitor.py",
    "dashboard_screens.py",
    "dashboard_wandb.py",
    "faults.py",
    "processes.py",
    "pruning.py",
    "reproducibility.py",
    "report_callback.py",
    "summary.py",
}
HYDRA = {"cli.py", "checkpoint.py", "growth.py", "help_page.py", "reports/sweep.py"} | ENTRY_POINTS
CORE = [name for name in FILES if name.startswith(("models/", "ops/")) or name in {"losses.py", "metrics.py"}]
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
            paths = ["/".join(parts[1:end]) + ".py" for end in range(2, len(parts) + 1)]
            found |= {path for path in paths if path in FILES}
    return found


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_the_walk_sees_what_is_there():
    assert "models/afa.py" in CORE
    assert "ops/par.py" in CORE
    assert own_files(TREES["models/afa.py"]) == {
        "models/mix_transformer.py",
        "models/mlp_decoder.py",
        "types.py",
    }
    assert "lightning" in packages(TREES["lightning_module.py"])
    hidden = "def f():\n    import lightning.pytorch as pl\n    from wsss_afa.ops import par\n"
    assert packages(ast.parse(hidden)) == {"lightning", "wsss_afa"}
    assert own_files(ast.parse(hidden)) == {"ops/par.py"}


@pytest.mark.parametrize("name", CORE)
def test_the_core_knows_tensors_alone(name):
    assert not packages(TREES[name]) & {"lightning", "hydra", "omegaconf", "wandb", "PIL"}


@pytest.mark.parametrize("name", CORE)
def test_the_core_knows_types_and_its_own_folder(name):
    folder = name.rpartition("/")[0]
    others = {file for file in own_files(TREES[name]) if file.rpartition("/")[0] != folder or not folder}
    assert others <= {"types.py"}


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("data/")])
def test_data_knows_types_alone(name):
    assert {file for file in own_files(TREES[name]) if not file.startswith("data/")} <= {"types.py"}


def test_types_and_recipe_know_no_other_part():
    assert not own_files(TREES["types.py"])
    assert own_files(TREES["optim.py"]) <= {"types.py"}
    assert own_files(TREES["visualize.py"]) <= {"types.py"}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("lightning", LIGHTNING), ("hydra", HYDRA), ("omegaconf", HYDRA)],
)
def test_frameworks_live_where_the_plan_has_them(package, allowed):
    assert {name for name, tree in TREES.items() if package in packages(tree)} <= allowed


def test_wandb_is_imported_where_it_is_used():
    users = {name for name, tree in TREES.items() if "wandb" in packages(tree)}
    assert users == {"dashboard_screens.py", "dashboard_wandb.py"}
    for name, tree in TREES.items():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert "wandb" not in packages(top), name


def test_nothing_imports_in_circles():
    TopologicalSorter({name: own_files(tree) for name, tree in TREES.items()}).prepare()


def test_no_catch_all_modules():
    stems = {part for name in FILES for part in Path(name).with_suffix("").parts}
    assert not stems & {"utils", "util", "common", "helpers", "misc", "registry"}


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
        f"wsss_afa.{name.removesuffix('.py').replace('/', '.')}" for name in CORE if "__init__" not in name
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
