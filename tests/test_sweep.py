"""Sweeps: what a grid may say, runs that are found again, and a real cluster whose worker is killed."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from kinemic import cli, sweep
from kinemic.artefacts import Store
from kinemic.config import PARAMS, Experiment

PARAMETERS = "scale = 'smoke'\nshots = None\nseed = None\nsettings = {}"
SETUP = "from kinemic.config import Experiment\ncfg = Experiment.from_notebook(globals())"
BODY = """
import os, pathlib, subprocess, time
from kinemic.artefacts import Store, publish
here = pathlib.Path(os.environ["SWEEP_TEST"])
helper = subprocess.Popen(["sleep", "100"])
def note(word):
    with open(here / "log", "a") as log:
        log.write(f"{word} {cfg.shots} {os.getpid()} {helper.pid}\\n")
note("START")
while not (here / "go").exists():
    time.sleep(0.05)
helper.kill()
if cfg.shots == 7 and (here / "forbid").exists():
    raise ValueError("seven shots\\nare too many")
score = {"value": cfg.shots + 0.25, "unit": "points", "n": 1}
publish("tiny", cfg.edition, {"score": score}, cfg.record(), Store())
note("END")
"""


class Place:
    """A notebook, grids, a store and the log of what the notebook did."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.store = folder, Store(folder / "cache")
        monkeypatch.setenv("SWEEP_TEST", str(folder))
        monkeypatch.setenv("KINEMIC_CACHE", str(folder / "cache"))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        tagged = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        made = new_notebook(cells=[tagged, new_code_cell(SETUP), new_code_cell(BODY)])
        made.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
        self.notebook = folder / "tiny.ipynb"
        nbformat.write(made, self.notebook)

    def words(self, name="grid", **content):
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"base": "smoke"} | content))
        return ["sweep", str(self.notebook), "--grid", str(path)]

    def start(self, *words):
        # a shell starts its background jobs with Ctrl-C ignored, which the tests would inherit and pass on
        restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen([sys.executable, "-m", "kinemic.cli", *words], text=True, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=restore)  # fmt: skip

    def log(self, word):
        """(shots, pid of the kernel, pid of its helper) for every line that begins with the word."""
        path = self.folder / "log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [tuple(map(int, rest)) for first, *rest in lines if first == word]

    def manifests(self):
        return {p.parent.name: json.loads(p.read_text()) for p in self.store.root.glob("sweeps/tiny/*/manifest.json")}


def until(condition, process=None, seconds=300):
    """Wait for another process; the limit only keeps a broken test from hanging."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of three runs on two local workers, one of which was killed while it had a run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = Place(tmp_path_factory.mktemp("swept"), monkeypatch)
        words = place.words(grid={"shots": [1, 2, 3, "1"]})
        caller = place.start(*words, "--workers", "2")
        try:
            until(lambda: len(place.log("START")) == 2, caller)
            shots, kernel, helper = place.log("START")[0]
            runner, worker, *above = psutil.Process(kernel).parents()
            assert "kinemic.sweep" in runner.cmdline() and caller.pid in [p.pid for p in above]
            worker.kill()
            until(lambda: not any(psutil.pid_exists(pid) for pid in (kernel, helper, runner.pid)))
            (place.folder / "go").touch()
            place.said, place.errors = caller.communicate(timeout=300)
        finally:
            caller.kill()
        place.code, place.victim = caller.returncode, shots
        place.words_of_the_sweep = words
        yield place


def test_a_killed_worker_loses_nothing_and_doubles_nothing(swept):
    assert swept.code == 0, swept.errors
    started, ended = (Counter(shots for shots, *_ in swept.log(word)) for word in ("START", "END"))
    assert ended == dict.fromkeys([1, 2, 3], 1)
    assert started == ended + Counter([swept.victim])  # the one that was killed began again, no other did


def test_every_run_has_its_manifest_and_its_notebook(swept):
    found = swept.manifests()
    assert sorted(m["parameters"]["shots"] for m in found.values()) == [1, 2, 3]
    for key, made in found.items():
        shots = made["parameters"]["shots"]
        assert made["key"] == key and made["status"] == "finished" and made["error"] is None
        assert made["metrics"]["score"]["value"] == shots + 0.25
        assert made["settings"] == json.loads(json.dumps(Experiment.load("smoke", shots=shots).record()))
        assert made["seconds"] > 0 and made["worker"].startswith("tcp://") and made["packages"]["torch"]
        folder = swept.store.root / "sweeps" / "tiny" / key
        assert {p.name for p in folder.iterdir()} == {"notebook.ipynb", "manifest.json", "log.txt", "lock"}
        assert all(c.get("execution_count") for c in nbformat.read(folder / "notebook.ipynb", 4).cells)


def test_the_table_has_a_row_per_run(swept):
    frame = pd.read_csv(swept.store.root / "sweeps" / "tiny" / "grid.csv")
    assert list(frame.shots) == [1, 2, 3] and list(frame.score) == [1.25, 2.25, 3.25]
    assert re.search(r"^\w{8} +finished +[\d.]+ +3 +3\.25$", swept.said, re.MULTILINE)
    assert "3 to be finished (4 combinations, some equal)" in swept.errors


def test_the_same_command_does_nothing_more(swept, monkeypatch, capsys):
    monkeypatch.setenv("KINEMIC_CACHE", str(swept.store.root))
    before = (swept.folder / "log").read_text(), swept.manifests()
    assert cli.main(swept.words_of_the_sweep) == 0
    assert capsys.readouterr().out == swept.said
    assert before == ((swept.folder / "log").read_text(), swept.manifests())


def test_a_failing_run_is_reported_and_tried_again_on_any_scheduler(swept, monkeypatch, capsys):
    from distributed import LocalCluster

    monkeypatch.setenv("KINEMIC_CACHE", str(swept.store.root))
    monkeypatch.setenv("SWEEP_TEST", str(swept.folder))
    (swept.folder / "forbid").touch()
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        words = [*swept.words("other", grid={"shots": [7, 1]}), "--scheduler", cluster.scheduler_address]
        assert cli.main(words) == 1
        out, err = capsys.readouterr()
        assert len(re.findall(r"^\w{8} +finished", out, re.MULTILINE)) == 1
        assert re.search(r"^failed: shots=7: ValueError: seven shots \(.*sweeps/tiny/\w+\)$", err, re.MULTILINE)
        assert err.strip().endswith("1 of 2 runs failed; the same command tries them again")
        (bad,) = [m for m in swept.manifests().values() if m["status"] == "failed"]
        assert bad["error"] == "ValueError: seven shots" and "raise ValueError" in "\n".join(bad["traceback"])
        (swept.folder / "forbid").unlink()
        assert cli.main(words) == 0
    ended = Counter(shots for shots, *_ in swept.log("END"))
    assert ended[1] == ended[7] == 1
    assert swept.manifests()[bad["key"]]["metrics"]["score"]["value"] == 7.25


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path, monkeypatch)


def test_ctrl_c_stops_kernels_and_says_how_to_go_on(place):
    caller = place.start(*place.words(grid={"shots": [1, 2]}), "--workers", "1")
    try:
        until(lambda: place.log("START"), caller)
        ((_, *pids),) = place.log("START")
        os.killpg(caller.pid, signal.SIGINT)  # as a terminal does: to the caller and to its workers
        _, err = caller.communicate(timeout=300)
    finally:
        caller.kill()
    assert caller.returncode == 130
    assert err.strip().splitlines()[1:] == ["interrupted: 0 of 2 runs are finished, the same command resumes"]
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert not place.manifests()


def test_two_sweeps_at_the_same_time_share_a_run(place):
    (run,) = sweep.plan(place.notebook, sweep.Grid.read(place.words(grid={"shots": [1]})[-1]))
    job = {"notebook": str(run.notebook), "scale": run.scale, "parameters": run.parameters, "key": run.key,
           "store": str(place.store.root), "folder": str(place.store.root / run.folder), "worker": "here"}  # fmt: skip
    command = [sys.executable, "-m", "kinemic.sweep"]
    runners = [subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) for _ in range(2)]
    for runner in runners:
        runner.stdin.write(json.dumps(job).encode() + b"\n")
        runner.stdin.flush()
    (place.folder / "go").touch()
    assert [runner.wait(300) for runner in runners] == [0, 0]
    for runner in runners:
        runner.stdin.close()
    assert len(place.log("START")) == len(place.log("END")) == 1


def test_a_key_follows_code_and_settings_but_not_prose(place):
    def key(**parameters):
        return sweep.Run(place.notebook, "smoke", parameters).key

    first = key(shots=2)
    assert first == key(shots=Experiment.load("smoke").shots) == key(**{"settings.adapt.steps": 6})
    assert len({first, key(shots=3), key(**{"settings.adapt.steps": 7})}) == 3
    made = nbformat.read(place.notebook, 4)
    made.cells.insert(0, nbformat.v4.new_markdown_cell("Prose."))
    nbformat.write(made, place.notebook)
    assert key(shots=2) == first
    made.cells[-1].source += "\nmore = 1"
    nbformat.write(made, place.notebook)
    assert key(shots=2) != first


def test_nested_and_dotted_names_are_the_same(place):
    inner = {"fixed": {"settings": {"adapt": {"steps": 3}}}, "grid": {"settings": {"har": {"seeds": [1, 2]}}}}
    nested = place.words("nested", **inner)
    dotted = place.words("dotted", fixed={"settings.adapt.steps": 3}, grid={"settings.har.seeds": [1, 2]})
    keys = [[run.key for run in sweep.plan(place.notebook, sweep.Grid.read(words[-1]))] for words in (nested, dotted)]
    assert keys[0] == keys[1] and len(set(keys[0])) == 2
    runs = sweep.plan(place.notebook, sweep.Grid.read(dotted[-1]))
    assert [(r.experiment.adapt.steps, r.experiment.har.seeds) for r in runs] == [(3, 1), (3, 2)]


@pytest.mark.parametrize(("content", "said"), [
    ({"grid": {"shot": [1]}}, "grid.yaml: shot=1: .*shot: Extra inputs"),
    ({"grid": {"shots": [1, 0]}}, "grid.yaml: shots=0: .*greater than or equal to 1"),
    ({"grid": {"settings.adapt.window": ["best"]}}, "adapt.window=best: .*adapt.window: Input should be"),
    ({"grid": {"shots": [1]}, "fixed": {"settings": {"adapt": {"step": 3}}}}, "adapt.step: Extra inputs"),
    ({"grid": {"adapt.window": ["mined"]}}, "grid: adapt.window: .*settings.SECTION.FIELD"),
    ({"grid": {"settings": [{}]}}, "grid: settings: .*settings.SECTION.FIELD"),
    ({"grid": {"shots": 1}}, "grid: shots: expected a list of values, found 1"),
    ({"grid": {"shots": []}}, "grid: shots: expected a list of values"),
    ({"grid": {"shots": [1]}, "fixed": {"shots": 2}}, "shots is in fixed and in grid"),
    ({"grid": {"settings.har.seeds": [1], "settings": {"har": {"seeds": [2]}}}}, "settings.har.seeds is given twice"),
    ({"grid": {"scale": ["smoke"]}}, "given by base"),
    ({"grid": {"shots": [1]}, "base": "enormous"}, "base: no parameter file enormous.yaml; scales are"),
    ({"grid": {"shots": [1]}, "base": "my.yaml"}, "base: expected the name of a scale"),
    ({"grid": {"shots": [1]}, "show": "score"}, "show: expected a list"),
    ({"grid": {"shots": [1]}, "grids": 1}, "unknown entry grids"),
    ({"grid": [1]}, "grid: expected a mapping"),
    ({"grid": {}}, "grid is missing or empty"),
])  # fmt: skip
def test_a_bad_grid_is_one_line_and_nothing_runs(place, capsys, content, said):
    assert cli.main(place.words(**content)) == 2
    err = capsys.readouterr().err
    assert re.search(said, err) and err.startswith("kinemic: ") and err.count("\n") == 1
    assert not (place.store.root / "sweeps").exists()


@pytest.mark.parametrize(("text", "said"), [
    ("grid: [1", "not valid YAML"), ("- 1", "expected a mapping"), ("", "expected a mapping"),
    (None, "no such grid file"),
])  # fmt: skip
def test_a_file_that_is_no_grid_is_one_line(place, capsys, text, said):
    words = place.words(grid={"shots": [1]})
    Path(words[-1]).unlink()
    if text is not None:
        Path(words[-1]).write_text(text)
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err and "grid.yaml" in err and err.count("\n") == 1


@pytest.mark.parametrize(("text", "said"), [
    (None, "no such notebook"), ("{}", "not a notebook"), ("words", "not a notebook"),
    (nbformat.writes(new_notebook(cells=[new_code_cell("1")])), "no cell is tagged 'parameters'"),
])  # fmt: skip
def test_a_file_that_is_no_notebook_is_one_line(place, capsys, text, said):
    words = place.words(grid={"shots": [1]})
    place.notebook.unlink()
    if text is not None:
        place.notebook.write_text(text)
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err and "tiny.ipynb" in err and err.count("\n") == 1


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere", "carrier-pigeon://a:1"])
def test_a_scheduler_that_does_not_answer_is_one_line(place, capsys, monkeypatch, address):
    monkeypatch.setattr(sweep, "CONNECT_SECONDS", 1)
    assert cli.main([*place.words(grid={"shots": [1]}), "--scheduler", address]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith(f"kinemic: --scheduler {address}: no Dask scheduler answers there")
    assert err.count("\n") == 2 and "tiny.ipynb: 1 to be finished" in err


def test_another_server_at_the_address_is_one_line(place, capsys):
    def answer(listening):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, args=(listening,), daemon=True).start()
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        assert cli.main([*place.words(grid={"shots": [1]}), "--scheduler", address]) == 2
        listening.shutdown(socket.SHUT_RDWR)
    err = capsys.readouterr().err
    assert f"--scheduler {address}: no Dask scheduler answers there" in err and err.count("\n") == 2


@pytest.mark.parametrize("words", [[], ["sweep"], ["dance"], ["sweep", "a.ipynb", "--grid", "g", "--workers", "0"]])
def test_a_wrong_command_line_ends_with_its_usage(capsys, words):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2 and "usage: kinemic" in capsys.readouterr().err


def test_the_committed_grids_are_valid():
    grids = sorted((PARAMS / "grids").glob("*.yaml"))
    assert grids
    for path in grids:
        assert len(sweep.plan(PARAMS.parent / "06_ablations.ipynb", sweep.Grid.read(path))) > 1
