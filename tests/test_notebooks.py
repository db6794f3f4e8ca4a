"""Chapters as sources: one set of parameters, no stored results, no typed measurements; bad parameters stop a run."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kinemic.config import PARAMS, Experiment

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
CHAPTERS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
ALL = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


def cells(path, kind=None):
    found = json.loads(path.read_text())["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return cell["metadata"].get("tags", [])


def parameters(path):
    (cell,) = [c for c in cells(path, "code") if "parameters" in tags(c)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source(cell)).body}


def test_there_are_nine_chapters_in_order():
    assert [p.name[:2] for p in CHAPTERS] == [f"{i:02d}" for i in range(1, 10)]


@ALL
def test_parameters_are_literals_that_the_scales_and_the_experiment_know(path):
    given = parameters(path)
    assert given == parameters(CHAPTERS[0]) and len(given) <= 10
    fields = set(Experiment.model_fields)
    assert set(given) - {"settings"} <= fields
    for scale in PARAMS.glob("*.yaml"):
        assert set(yaml.safe_load(scale.read_text())) == set(given), scale.name
    assert Experiment.load(given.pop("scale"), **given) == Experiment.load("smoke")


@ALL
def test_the_cell_after_the_parameters_validates_them(path):
    code = cells(path, "code")
    (index,) = [i for i, c in enumerate(code) if "parameters" in tags(c)]
    assert "Experiment.from_notebook(globals())" in source(code[index + 1])


@ALL
def test_no_result_is_stored_but_in_checked_cells(path):
    for cell in cells(path, "code"):
        if "NBVAL_CHECK_OUTPUT" not in source(cell):
            assert cell["execution_count"] is None and cell["outputs"] == []


def test_nbval_has_cells_to_check():
    checked = [c for p in CHAPTERS for c in cells(p, "code") if "NBVAL_CHECK_OUTPUT" in source(c)]
    assert len(checked) >= 5 and all(c["outputs"] and c["execution_count"] for c in checked)


@ALL
def test_no_percentage_is_typed_in_prose(path):
    for cell in cells(path, "markdown"):
        typed = re.findall(r"(?<![\w}.])\d+(?:\.\d+)?\s?%", source(cell))
        # The level of the intervals is a convention, not a measurement.
        assert not [t for t in typed if not t.startswith("95")], source(cell)[:200]


@ALL
def test_every_glued_key_is_made_and_used_in_the_chapter(path):
    used = {k for c in cells(path, "markdown") for k in re.findall(r"\{glue:\w+\}`([\w-]+)", source(c))}
    code = "\n".join(source(c) for c in cells(path, "code"))
    literal = {k for k in used if re.search(rf"[\"']{re.escape(k)}[\"']", code)}
    # A key may be put together in a loop; then its slug is in the code.
    assert all(k in literal or k.split("-")[0] in code for k in used)


@ALL
def test_exercises_have_solutions_that_run(path):
    prose = "\n".join(source(c) for c in cells(path, "markdown"))
    if path.stem.endswith("_record"):
        return
    assert len(re.findall(r"[Ee]xercise", prose)) >= 2 and len(re.findall(r":class: .*dropdown", prose)) >= 2


def run_chapter(out, *words):
    command = [sys.executable, "-m", "papermill", "--cwd", str(FOLDER), "-k", "python3", "--no-progress-bar"]
    return subprocess.run([*command, *words, str(CHAPTERS[1]), str(out)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("words", "said"), [
    (("-p", "shot", "3"), "shot: Extra inputs are not permitted"),
    (("-y", "settings: {adapt: {window: best}}"), "adapt.window: Input should be"),
    (("-p", "source", "nowhere"), "nowhere: no such folder"),
])  # fmt: skip
def test_a_bad_parameter_stops_the_run_with_one_line_and_leaves_results_alone(tmp_path, monkeypatch, words, said):
    kept = tmp_path / "cache" / "step" / "key" / "manifest.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    monkeypatch.setenv("KINEMIC_CACHE", str(tmp_path / "cache"))
    done = run_chapter(tmp_path / "out.ipynb", *words)
    assert done.returncode != 0
    last = [line for line in done.stderr.strip().splitlines() if line.strip()][-1]
    assert said in last, done.stderr[-500:]
    assert kept.read_text() == "{}"


def test_output_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KINEMIC_CACHE", str(tmp_path / "file"))
    done = run_chapter(tmp_path / "out.ipynb")
    assert done.returncode != 0 and "cannot be written" in done.stderr
