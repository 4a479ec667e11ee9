"""What is installed: the wheel's files, its programs, and the pinned versions."""

import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    for tool in ("build", "hatchling"):
        pytest.importorskip(tool, reason="needs the extra dev: pip install -e '.[dev]'")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        yield archive


def names_below(archive, folder):
    return {name.removeprefix(folder) for name in archive.namelist() if name.startswith(folder)}


def test_the_wheel_holds_the_configuration(wheel):
    checkout = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert names_below(wheel, "wsss_afa/conf/") == checkout
    assert "train.yaml" in checkout


def test_the_wheel_holds_modules_data_and_licence(wheel):
    package = ROOT / "src" / "wsss_afa"
    kinds = (".py", ".typed", ".txt", ".csv")
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.suffix in kinds}
    assert {"py.typed", "data/voc2012/tags.csv"} <= files
    assert files <= names_below(wheel, "wsss_afa/")
    assert names_below(wheel, f"wsss_afa-{PROJECT['version']}.dist-info/licenses/") == {"LICENSE"}


def test_an_installed_package_finds_its_own_configuration(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    wheel.extractall(site)
    code = "from wsss_afa.files import CONFIG_DIR; print(CONFIG_DIR)"
    code = f"import sys; sys.path.insert(0, {str(site)!r}); {code}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == site / "wsss_afa" / "conf"
    assert (site / "wsss_afa" / "conf" / "train.yaml").is_file()


def test_every_program_has_its_module(wheel):
    entry_points = configparser.ConfigParser()
    (name,) = (name for name in wheel.namelist() if name.endswith("dist-info/entry_points.txt"))
    entry_points.read_string(wheel.read(name).decode())
    modules = {target.split(":")[0] for target in entry_points["console_scripts"].values()}
    assert {f"{module.replace('.', '/')}.py" for module in modules} <= set(wheel.namelist())


def test_every_dependency_is_pinned_within_its_range():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"].values()
    needed = [Requirement(line) for group in (PROJECT["dependencies"], *extras) for line in group]
    others = [need for need in needed if need.name != PROJECT["name"]]
    assert others
    assert not [need for need in others if versions[canonicalize_name(need.name)] not in need.specifier]
    assert not [name for name, version in versions.items() if version.local]


def test_the_changelog_opens_with_this_version():
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] in ("Unreleased", PROJECT["version"])


def test_releases_of_lightning_that_stole_credentials_are_left_out():
    lightning = next(
        need for line in PROJECT["dependencies"] if (need := Requirement(line)).name == "lightning"
    )
    assert "2.6.1" in lightning.specifier
    assert not {"2.6.2", "2.6.3"} & set(lightning.specifier.filter(["2.6.2", "2.6.3", "2.6.4"]))


def test_the_readme_lists_every_extra():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(PROJECT["optional-dependencies"]) == set(re.findall(r"^\| `\[(\w+)\]`", text, re.MULTILINE))


def test_the_dockerfile_installs_what_there_is():
    """It is built nowhere here: its stages, the files that it copies, and the extras that it names exist."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", text, re.MULTILINE)
    assert [name for _, name in stages] == ["base", "cpu", "cuda"]
    assert [origin for origin, _ in stages[1:]] == ["base", "base"]
    copied = " ".join(re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)).split()
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}\n" in ignored
    extras = {extra for names in re.findall(r"\.\[([\w,]+)\]", text) for extra in names.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])
    assert text.count("USER 1000") == text.count('ENTRYPOINT ["wsss-afa"]') == 2
