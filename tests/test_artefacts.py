"""The store computes once, keys by content, survives interruptions; manifests are complete."""

import json

import pytest

from kinemic import artefacts
from kinemic.artefacts import Store, load_manifest, promote, publish, source_hash


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def test_a_step_is_computed_once_and_again_when_anything_changes(store):
    calls = []

    def compute(folder):
        calls.append(folder)
        (folder / "x").write_text("1")
        return {"loss": 0.5}

    first = store.run("step", {"a": 1}, compute, modules=("mining",))
    assert store.run("step", {"a": 1}, compute, modules=("mining",)).key == first.key and len(calls) == 1
    other = store.run("step", {"a": 2}, compute, modules=("mining",))
    third = store.run("step", {"a": 1}, compute, inputs=[other], modules=("mining",))
    assert len({first.key, other.key, third.key}) == 3 and len(calls) == 3
    manifest = first.manifest
    assert manifest["metrics"] == {"loss": 0.5} and manifest["settings"] == {"a": 1}
    assert {"commit", "packages", "python", "seconds", "machine", "made", "modules"} <= set(manifest)


def test_an_interrupted_step_keeps_its_partial_work_and_earlier_results(store):
    done = store.run("step", {"a": 0}, lambda folder: None)

    def interrupted(folder):
        (folder / "half").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.run("step", {"a": 1}, interrupted)
    assert (done.folder / "manifest.json").is_file()
    seen = []
    store.run("step", {"a": 1}, lambda folder: seen.append((folder / "half").read_text()))
    assert seen == ["kept"]


def test_code_counts_and_comments_do_not(tmp_path, monkeypatch):
    from importlib.machinery import ModuleSpec

    file = tmp_path / "mod.py"
    spec = ModuleSpec("kinemic.mod", None, origin=str(file))
    monkeypatch.setattr(artefacts.importlib.util, "find_spec", lambda name: spec)
    hashes = []
    for text in (
        '"""Doc."""\ndef f():\n    return 1\n',
        'def f():\n    """New."""\n    return 1  # why\n',
        "def f():\n    return 2\n",
    ):
        file.write_text(text)
        source_hash.cache_clear()
        hashes.append(source_hash("mod"))
    source_hash.cache_clear()
    assert hashes[2] not in hashes[:2]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file.*cannot be written.*KINEMIC_CACHE"):
        Store(tmp_path / "file")


def test_damaged_and_missing_manifests_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest"):
        load_manifest(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="bad.json: damaged manifest"):
        load_manifest(tmp_path / "bad.json")


def test_published_results_are_complete_and_keep_their_date_while_unchanged(store):
    metrics = {"top1": {"value": 50.0, "unit": "%", "n": 3, "low": 40.0, "high": 60.0}}
    first = publish("05", "embedded", metrics, {"shots": 5}, store)
    assert publish("05", "embedded", metrics, {"shots": 5}, store)["made"] == first["made"]
    assert first["metrics"] == metrics and first["scale"] == "embedded"
    with pytest.raises(ValueError, match="needs value, unit and n"):
        publish("05", "embedded", {"top1": {"value": 1}}, {}, store)


def test_only_results_are_promoted_to_the_record(store, tmp_path, monkeypatch):
    monkeypatch.setattr(artefacts, "RECORD", tmp_path / "record")
    for scale in ("smoke", "embedded"):
        publish("05", scale, {"x": {"value": 1, "unit": "", "n": 1}}, {}, store)
    (made,) = promote(store)
    assert made == tmp_path / "record" / "embedded" / "05.json"
    assert json.loads(made.read_text())["metrics"]["x"]["value"] == 1


def test_a_benchmark_that_was_not_run_gives_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(artefacts, "RECORD", tmp_path)
    with pytest.raises(FileNotFoundError, match="make it with:\npython benchmarks/sample.py"):
        artefacts.load_benchmark("sample")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "sample.json").write_text('{"rows": [')
    with pytest.raises(ValueError, match="damaged"):
        artefacts.load_benchmark("sample")
    (tmp_path / "benchmarks" / "sample.json").write_text('{"rows": []}')
    assert artefacts.load_benchmark("sample") == {"rows": []}


def test_committed_benchmarks_have_a_script_and_one_form():
    for path in (artefacts.RECORD / "benchmarks").glob("*.json"):
        found = artefacts.load_benchmark(path.stem)
        assert (artefacts.ROOT / "benchmarks" / f"{path.stem}.py").is_file()
        assert set(found) == {"name", "made", "environment", "settings", "rows", "summary"} and found["rows"]
        assert found["name"] == path.stem and not found["settings"].get("quick")
        flat = [*found["rows"], found["summary"]]
        assert all(isinstance(v, str | int | float | None) for row in flat for v in row.values())
