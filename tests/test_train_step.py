"""The benchmark of the training step: both steps compute the same, and the script writes what the book reads."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "train_step.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("train_step", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setting(bench):
    return bench.Setting(bench.QUICK, dropout=0.0)


def test_our_step_has_the_losses_and_gradients_of_the_reference_shaped_one(bench, setting):
    """Separate passes, 196 frames, captions encoded in the loop, windows cut one by one; a bank in the second draw."""
    found = bench.deviation(setting, double=False)
    assert found["loss term"] < 1e-5 and found["model's gradient"] < 1e-5 and found["parameter's gradient"] < 1e-3
    found = bench.deviation(setting, double=True)  # what is left above is rounding
    assert found["loss term"] < 1e-7 and found["model's gradient"] < 1e-6 and found["parameter's gradient"] < 1e-5


def test_the_comparison_notices_a_wrong_step(bench, setting, monkeypatch):
    monkeypatch.setattr(bench, "window_weight", lambda a, b: torch.ones(len(a)))
    assert min(bench.deviation(setting, double=True).values()) > 1e-3


def test_every_saving_lowers_the_work_or_keeps_it(bench, setting):
    draw = setting.adaptation().draw()
    work = [bench.flops(bench.Reference(setting, setting.adaptation(), saved), draw) for saved in (0, 1, 2, 3, 5)]
    ours = bench.flops(bench.Ours(setting.adaptation()), draw)
    assert work == sorted(work, reverse=True) and work[0] > 2 * work[-1]
    # the last ones save copies, not operations
    last = bench.flops(bench.Reference(setting, setting.adaptation(), 6), draw)
    assert last == pytest.approx(work[-1], rel=0.05) and ours == pytest.approx(last, rel=0.02)


def test_a_variant_is_timed_in_a_process_of_its_own(bench):
    found = bench.run("ours", 1, 0, True)
    assert set(found) == {"first", "seconds", "peak", "before"} and min(found.values()) > 0
    assert found["peak"] >= found["before"]


def test_the_script_writes_the_keys_that_the_book_reads(bench, setting, tmp_path, monkeypatch, capsys):
    out = tmp_path / "train_step.json"
    words = ["train_step.py", "--quick", "--threads", "1", "--repetitions", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(bench, "run", lambda name, threads, turn, quick: bench.child(name, setting, turn))
    bench.main()
    made = json.loads(out.read_text())
    assert set(made) == {"name", "made", "environment", "settings", "rows", "summary"} and made["name"] == "train_step"
    assert [r["variant"] for r in made["rows"]] == ["reference", *(f"+ {s}" for s in bench.SAVINGS), "ours"]
    assert all(isinstance(v, int | float) for v in made["summary"].values())
    assert "ours: hours on a GPU at 10 TFLOP/s" in made["summary"] and "ours" in capsys.readouterr().out
