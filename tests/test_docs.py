"""The documentation is true: commands compose, what it names exists, examples run, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import hydra
import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from page_files import ADDING_A_METHOD, ADDING_PARTS, titles, write_files
from wsss_afa.files import CONFIG_DIR

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
GENERATOR = ROOT / "docs" / "generator"
PACKAGE = ROOT / "src" / "wsss_afa"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names what is gone, too
GROUPS = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_dir()}
PROGRAMS = {path.stem for path in CONF.glob("*.yaml")}
PLACES = ("data.root=", "ckpt=", "out=", "source=", "labels=", "runs=", "hydra.run.dir=", "hydra.sweep.dir=")
OPTIONAL = {"optuna": "hydra_plugins.hydra_optuna_sweeper"}
pytestmark = pytest.mark.skipif(not GENERATOR.is_dir(), reason="no docs/ beside the tests")


@pytest.fixture(scope="module")
def generator():
    """The modules that write pages, by name."""
    for needed in ("griffe", "mkdocs", "latex2mathml"):
        pytest.importorskip(needed, reason="needs the extra docs: pip install -e '.[docs]'")
    sys.path.insert(0, str(GENERATOR))
    yield {name: importlib.import_module(name) for name in ("settings", "pages", "hooks", "notebooks")}
    sys.path.remove(str(GENERATOR))


# Settings


def leaves(content, prefix=""):
    """Values in nested dictionaries by dotted name; what has nothing but a target counts as a value."""
    found = {}
    for key, value in content.items():
        if key == "_target_" or (key == "defaults" and not prefix):
            continue
        inner = leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        found |= inner or {f"{prefix}{key}": value}
    return found


def with_owners(name):
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def rows_of(file):
    return {row.name: row for row in file.settings}


FILES = [
    path.relative_to(CONF).as_posix()
    for path in sorted(CONF.rglob("*.yaml"))
    if path.relative_to(CONF).parts[0] not in ("experiment", "sweep")
]


@pytest.mark.parametrize("name", FILES)
def test_every_setting_is_listed_with_its_default_and_a_meaning(generator, name):
    content = yaml.safe_load((CONF / name).read_text(encoding="utf-8")) or {}
    file = generator["settings"].read(CONF / name)
    rows, values = rows_of(file), leaves(content)
    for leaf, value in values.items():
        owners = [owner for owner in with_owners(leaf) if owner in rows]
        assert owners, leaf
        assert any(rows[owner].meaning for owner in owners), f"{leaf} needs a comment"
        assert leaf not in rows or not rows[leaf].default or yaml.safe_load(rows[leaf].default) == value
    assert set(rows) <= {owner for leaf in values for owner in with_owners(leaf)}


def test_defaults_are_as_written_and_meanings_are_the_comments(generator):
    rows = rows_of(generator["settings"].read(CONF / "method" / "afa.yaml"))
    assert rows["cam.scales"].default == "[1.0, 0.5, 1.5]"
    assert rows["low"] == ("low", "0.35", "β_l: scores up to here are background")
    base = rows_of(generator["settings"].read(CONF / "backbone" / "timm_vit.yaml"))
    inherited = rows_of(generator["settings"].read(CONF / "backbone" / "deit_base.yaml"))
    assert inherited["positions"].default == "bicubic"
    assert inherited["positions"].meaning == base["positions"].meaning  # of the file that it starts from
    assert base["std"].meaning == "standard deviation, likewise."  # the docstring's


def test_the_pages_hold_every_file(generator):
    programs, groups = generator["pages"].programs(), generator["pages"].groups()
    for name in FILES:
        group, _, stem = name.removesuffix(".yaml").rpartition("/")
        assert (f"### {group}={stem}\n" in groups) if group else (f"## {stem}\n" in programs)
    assert "| `method.refine.num_iter` | `10` |" in groups
    assert "| `backbone.variant` | `b1` |" in groups
    index = generator["pages"].module_index()
    assert not [name for name in generator["pages"].modules() if f"[`{name}`]" not in index]
    experiments = generator["pages"].experiments()
    for path in [*CONF.glob("experiment/*.yaml"), *CONF.glob("sweep/**/*.yaml")]:
        assert path.read_text(encoding="utf-8").partition("\n")[2].strip() in experiments, path.name


def known_names(generator):
    files = [*generator["settings"].programs(), *chain(*generator["settings"].groups().values())]
    listed = {file.package + row.name for file in files for row in file.settings}
    texts = [(file.package, file.path.read_text(encoding="utf-8")) for file in files]
    whole = {package + leaf for package, text in texts for leaf in leaves(yaml.safe_load(text) or {})}
    placed = {re.sub(r"^text\.", "method.texts.", name) for name in listed | whole}  # text@method.texts
    return {owner for name in placed for owner in with_owners(name)}


def comments(path):
    """The comments of a YAML file."""
    return "\n".join(re.findall(r"#.*", path.read_text(encoding="utf-8")))


def test_settings_that_pages_name_exist(generator):
    known = known_names(generator)
    name = r"[+']*((?:[a-z_]+\.)+[a-z_0-9]+)(?=[=`.,:;) ]|$)"
    texts = {
        page.name: "\n".join(re.findall(r"`[^`\n]+`", page.read_text(encoding="utf-8"))) for page in TODAY
    }
    texts |= {path.name: comments(path) for path in CONF.rglob("*.yaml")}
    named = {
        (page, match)
        for page, text in texts.items()
        for match in re.findall(rf"(?:^|[` (]){name}", text, re.MULTILINE)
        if match.split(".")[0] in GROUPS - {"hydra"} and not match.endswith((".py", ".yaml", ".md"))
    }
    assert len(named) > 100
    assert not [pair for pair in sorted(named) if pair[1] not in known]


def test_files_of_groups_that_pages_choose_exist():
    named = {
        (page.name, group, choice)
        for page in TODAY
        for group, choices in re.findall(
            r"`\+?([a-z_/0-9]+)=([a-z_0-9,]+)[` ]", page.read_text(encoding="utf-8")
        )
        if group in GROUPS
        for choice in choices.split(",")
    }
    own = {("adding_a_method.md", "method", "pixelcam")}
    assert len(named) > 30
    assert not [each for each in named - own if not (CONF / each[1] / f"{each[2]}.yaml").is_file()]


# Names and places


TEXTS = [*TODAY, *sorted(ROOT.glob("notebooks/*.ipynb")), *sorted(CONF.rglob("*.yaml")), ROOT / "mkdocs.yml"]


def exists(name):
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            annotated = part in getattr(found, "__annotations__", {})
            found = getattr(found, part, "" if annotated else None)
            if found is None:
                return False
        return True
    return False


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_dotted_names_exist(path):
    names = set(re.findall(r"\bwsss_afa(?:\.(?!md\b|json\b)\w+)+", path.read_text(encoding="utf-8")))
    assert not [name for name in sorted(names) if not exists(name)]


@pytest.mark.parametrize("page", TODAY, ids=lambda page: page.name)
def test_paths_exist(page):
    """Files of the repository by their path, and Python files by their path in the package."""
    text = re.sub(
        r"^wsss-afa-.*", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE
    )  # of an old commit
    named = re.findall(r"(?<![\w./…])((?:src|conf|docs|tests|benchmarks|notebooks)/[\w./-]*\w)", text)
    named += re.findall(r"`([\w/]+\.py)`", text)
    own = {*titles(ADDING_A_METHOD), *titles(ADDING_PARTS), "conf/method/NAME.yaml"}
    assert not [
        name for name in sorted(set(named) - own) if not ((ROOT / name).exists() or (PACKAGE / name).exists())
    ]


def test_the_tree_of_the_package_is_as_drawn():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"^```\nsrc/wsss_afa/.*?\n(.*?)^```$", text, re.M | re.S)[1]
    drawn = {match[1] for line in tree.splitlines() if (match := re.match(r"  ([a-z_]+)/", line))}
    assert drawn == {
        path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").is_file()
    }


# Commands


COMMAND = r"(?:-m wsss_afa\.|wsss-afa (?=[a-z_]+ (?:-m |--config-dir \S+ )?[^ ]*=))([a-z_]+)([^`]*)"


def lines_of(path):
    """Lines that may hold a command: of a YAML file the indented comments, of the others all."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    if path.suffix == ".ipynb":
        return re.findall(r'^ +"(.*)"', text, re.MULTILINE)
    if path.suffix == ".py":  # what a docstring or a message says, unless a program fills it in
        return [line for line in text.splitlines() if "{" not in line]
    return [line for line in text.splitlines() if path.suffix != ".yaml" or line.startswith("#  ")]


def commands():
    """Program and arguments of every command line; of those that differ in places alone, the first."""
    found = {}
    files = [*PAGES, *sorted(CONF.rglob("*.yaml")), *sorted(PACKAGE.rglob("*.py")), ROOT / "Makefile"]
    for path in [*files, *sorted(ROOT.glob("notebooks/*.ipynb"))]:
        for line in lines_of(path):
            for program, arguments in re.findall(COMMAND, line):
                arguments = arguments.replace("\\n", "")
                settings = [each for each in overrides_of(arguments) if not each.startswith(PLACES)]
                key = (program, *settings, *(word for word in arguments.split() if word.startswith("-")))
                found.setdefault(key, (path.stem, program, arguments))
    return [
        pytest.param(program, arguments, id=f"{page}: {program} {arguments}"[:90])
        for page, program, arguments in found.values()
    ]


def overrides_of(arguments):
    """The overrides of a command line; what a shell or the reader fills in is left out."""
    text = re.sub(r"\$\([^)]*\)+|\$\{[^}]*\}|\$\w+|\{\w+\}", "$", arguments).partition(";")[0]
    words = shlex.split(text.replace('"', "") if text.count('"') % 2 else text, comments=True)
    words = [word for word in words if "=" in word and "$" not in word and not word.startswith("-")]
    words = [word for word in words if not word.endswith("=…")]
    words = [word for word in words if not re.match(r"hydra[./](launcher|sweeper)", word)]
    return [word.replace("…", "x").rstrip(".,:)") for word in words]


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """The folder of settings that docs/adding_a_method.md and adding_parts.md write, as an override."""
    folder = tmp_path_factory.mktemp("own")
    for page in (ADDING_A_METHOD, ADDING_PARTS):
        write_files(page, folder)
    return f"hydra.searchpath=['file://{folder}/conf']"


@pytest.fixture(scope="module")
def composer():
    """Hydra, once for all commands."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        yield hydra.compose


@pytest.mark.parametrize(("program", "arguments"), commands())
def test_commands_compose(program, arguments, composer, own_folder):
    assert program in PROGRAMS
    if any(name in arguments and not find_spec(needed) for name, needed in OPTIONAL.items()):
        pytest.skip("needs a plugin of Hydra's")
    overrides = overrides_of(arguments)
    if " -m" in arguments:
        parsed = OverridesParser.create().parse_overrides(overrides)
        runs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
        assert runs
        overrides = runs[-1]
    own = [own_folder] if "--config-dir" in arguments else []
    assert composer(program, [*overrides, *own])


def test_commands_are_found():
    found = [parameters.values for parameters in commands()]
    assert len(found) > 60
    assert {program for program, _ in found} == PROGRAMS
    assert overrides_of(" +experiment=voc data.root=…/VOC2012 a=${rows[I / 3]} seed=$((I % 3))  # all") == [
        "+experiment=voc",
        "data.root=x/VOC2012",
    ]


def test_make_has_what_pages_call():
    targets = set(re.findall(r"^([a-z.]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`)make ([a-z.]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= called <= targets


# Examples, links, equations


EXAMPLES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in sorted((ROOT / "src").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


def test_there_are_examples():
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(generator, page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    made = {*generator["hooks"].FROM_ROOT.values(), "programs.md", "settings.md", "experiments.md"}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        if (
            re.match(r"[a-z]+:", target)
            or not path
            or path in made
            or path.startswith(("api/", "tutorials/"))
        ):
            continue
        assert (page.parent / path).is_file(), f"{page.name} links to {target}"


def test_code_beside_equations_is_that_of_the_sources(generator):
    blocks = re.findall(r"^```source\n(.+?)\n```$", (ROOT / "docs" / "method.md").read_text(), re.M | re.S)
    names = " ".join(blocks).split()
    assert len(names) > 20
    assert "wsss_afa.methods.afa.method.AFA.losses" in names
    for name in names:
        code = generator["hooks"].source(name)
        module = generator["settings"].package()[name.removeprefix("wsss_afa.")].module.filepath
        assert set(code.split()) <= set(module.read_text(encoding="utf-8").split()), name
        assert '"""' not in code, name
        compile(code.removeprefix("@property\n"), name, "exec")


def test_equations_become_mathml(generator):
    block = '<div class="arithmatex">\\[\n\\frac{a}{b} \\le 1\n\\]</div>'
    page = generator["hooks"].on_page_content(f'<p><span class="arithmatex">\\(x_i\\)</span></p>{block}')
    assert page.count("<math") == 2
    assert "<msub>" in page
    assert "<mfrac>" in page
    assert "arithmatex" not in page
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    equations = re.findall(r"\\\((.+?)\\\)", text) + re.findall(r"^\\\[\n(.+?)\n\\\]$", text, re.M | re.S)
    assert len(equations) > 30
    for equation in equations:
        assert "\\" not in generator["hooks"].to_mathml(equation, "block"), equation


def test_notebooks_are_pages(generator):
    notebooks = generator["notebooks"]
    assert notebooks.paths()
    for path in notebooks.paths():
        assert f"## [{notebooks.title(path)}]({path.stem}.md)" in notebooks.index()
        assert f"]({path.name})" in notebooks.page(path)
        assert "````python\n" in notebooks.page(path)


def test_tutorials_open_in_colab_where_the_repository_is_known(generator):
    notebooks = generator["notebooks"]
    (path, *_) = notebooks.paths()
    assert "colab" not in notebooks.page(path).lower()
    page = notebooks.page(path, "owner/name")
    assert f"(https://colab.research.google.com/github/owner/name/blob/main/notebooks/{path.name})" in page
    assert "%pip install 'wsss-afa[notebooks] @ git+https://github.com/owner/name'" in page
