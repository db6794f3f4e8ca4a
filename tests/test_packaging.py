"""What a fresh clone promises about itself: environments that agree, versions that agree, commands that exist."""

import re
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kinemic

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"pytorch": "torch"}  # where conda-forge's name is another
CONDA_ONLY = {"pip", "make"}


def read(name):
    path = ROOT / name
    assert path.is_file(), f"{name} is missing from the top of the repository"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads(read("pyproject.toml"))["project"]


@pytest.fixture(scope="module")
def ranges(project):
    """Distribution name -> specifier set, of everything pyproject asks for directly."""
    listed = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    parsed = [Requirement(line) for line in listed]
    assert len({canonicalize_name(r.name) for r in parsed}) == len(parsed), "a dependency is listed twice"
    return {canonicalize_name(r.name): r.specifier for r in parsed}


@pytest.fixture(scope="module")
def pins():
    lines = [line.split("#")[0].strip() for line in read("constraints.txt").splitlines()]
    parsed = [Requirement(line) for line in lines if line]
    return {canonicalize_name(r.name): r.specifier for r in parsed}


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load(read("CITATION.cff"))


def tracked_files():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name]
    if listed.returncode or not names:
        pytest.skip("not a git checkout: there is no list of tracked files")
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_conda_and_pip_ask_for_the_same_ranges(project, ranges):
    listed = yaml.safe_load(read("environment.yml"))["dependencies"]
    conda = [Requirement(item) for item in listed if isinstance(item, str)]
    pip = [line for item in listed if isinstance(item, dict) for line in item["pip"]]
    assert "-e ." in pip, "environment.yml does not install the package itself"
    conda += [Requirement(line) for line in pip if not line.startswith("-e")]
    named = {canonicalize_name(CONDA_NAMES.get(r.name, r.name)): r.specifier for r in conda if r.name not in CONDA_ONLY}
    assert str(named.pop("python")) == project["requires-python"]
    assert named == ranges


def test_constraints_pin_every_dependency_inside_its_range(ranges, pins):
    assert not ranges.keys() - pins.keys(), "dependencies without a tested version in constraints.txt"
    for name, pin in pins.items():
        (only,) = pin
        assert only.operator == "==" and "*" not in only.version, f"{name} is not pinned to one version"
        assert ranges.get(name, pin).contains(only.version), f"{name} {only.version} is outside {ranges[name]}"


def test_torch_and_torchvision_are_a_pair(pins):
    (torch,), (vision,) = pins["torch"], pins["torchvision"]
    # the two are released together: 2.13 with 0.28, 2.14 with 0.29
    assert int(vision.version.split(".")[1]) == int(torch.version.split(".")[1]) + 15


def test_one_version_everywhere(project, citation):
    newest = re.search(r"^## (\S+) \((\d{4}-\d{2}-\d{2})\)", read("book/changelog.md"), re.MULTILINE)
    assert newest, "book/changelog.md has no heading like '## 0.1.0 (2026-11-23)'"
    assert project["version"] == kinemic.__version__ == str(citation["version"]) == newest[1]
    assert str(citation["date-released"]) == newest[2]


def test_citation_names_software_and_paper(citation):
    assert citation["cff-version"] == "1.2.0"
    for field in ("message", "title", "authors", "license", "version", "date-released"):
        assert citation.get(field), f"CITATION.cff has no {field}"
    assert isinstance(citation["date-released"], date)
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Cazzola", "Alboody"]
    assert paper["type"] == "article" and "2512.11654" in paper["identifiers"][0]["value"]


def test_licence_is_the_one_declared(project, citation):
    text = read("LICENSE")
    assert text.startswith("MIT License\n\nCopyright (c) 2026 kinemic contributors")
    assert project["license"] == citation["license"] == "MIT"


def test_scripts_of_the_package_are_installed_with_it():
    patterns = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["package-data"]["kinemic"]
    package = ROOT / "kinemic"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    other = {path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert packed == other


def test_no_tracked_file_names_a_place_on_one_machine():
    place = re.compile(r"(?<![\w.:/-])/(?:work|tmp|root|home|Users|opt)/[\w.-]+|[A-Z]:\\Users\\\w+")
    found = []
    for path in tracked_files():
        if path.name == "tex-svg.js":  # vendored, unchanged
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in place.finditer(text)]
    assert not found


def test_built_things_are_not_tracked():
    built = re.compile(r"^(\.venv|\.cache|_build|book/chapters)/|\.egg-info/|__pycache__")
    names = [path.relative_to(ROOT).as_posix() for path in tracked_files()]
    assert not [name for name in names if built.search(name)]


# --- commands of the README ---


@pytest.fixture(scope="module")
def readme():
    return read("README.md")


def make_words(text):
    """Words of every `make ...` command in code blocks and in backticks."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line.strip().removeprefix("$ ") for block in fenced for line in block.splitlines()] + spans
    return [re.split(r"\s+#|[;&|]", line)[0].split()[1:] for line in lines if re.match(r"make(\s|$)", line)]


def test_readme_commands_are_targets_with_known_variables(readme):
    commands = make_words(readme)
    makefile = read("Makefile")
    targets = set(re.findall(r"^([\w.-]+)\s*:(?!=)", makefile, re.MULTILINE)) | {".venv"}
    variables = set(re.findall(r"^([A-Z]+)\s*\?=", makefile, re.MULTILINE)) | {"N"}
    named = {word for command in commands for word in command if "=" not in word}
    assigned = {word.split("=")[0] for command in commands for word in command if "=" in word}
    assert {"report", "test"} <= named, "README.md does not name `make report` and `make test`"
    assert named <= targets
    assert assigned <= variables


def test_readme_names_only_files_that_exist(readme):
    sources = r"notebooks/[\w./-]+\.(?:ipynb|yaml)|\b(?:kinemic|tests|book)/[\w/-]+\.(?:py|js|md|bib)"
    named = {match[0] for match in re.finditer(sources, readme)}
    assert not [name for name in named if not name.startswith("book/chapters/") and not (ROOT / name).is_file()]


def test_ci_runs_the_tests_as_the_readme_says(readme):
    script = read(".ci/run")
    assert ["test"] in make_words(readme)
    assert re.search(r"^make test( |$)", script, re.MULTILINE)
    assert "set -euo pipefail" in script


def test_every_scale_has_its_parameters():
    for scale in ("smoke", "embedded", "paper"):
        assert yaml.safe_load(read(f"notebooks/params/{scale}.yaml")), f"{scale}.yaml is empty"


def test_table_of_contents_lists_every_notebook_in_order():
    listed = re.findall(r"^\s*- file: book/chapters/(\S+)$", read("_toc.yml"), re.MULTILINE)
    assert listed == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
