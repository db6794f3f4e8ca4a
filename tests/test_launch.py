"""Two processes of a real launch give the weights, the bank and the files of one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kinemic.launch import Team

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Number of processes -> (weights, logs, manifest, cache) of `tests/launched.py`."""
    out = {}
    for processes in (1, 2):
        cache, words = tmp_path_factory.mktemp(f"launch{processes}"), [sys.executable]
        if processes > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            words += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes",
                      str(processes), "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_ip",
                      "127.0.0.1", "--main_process_port", port]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([*words, str(ROOT / "tests" / "launched.py"), str(cache)], env=environment, timeout=300,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        (manifest,) = cache.glob("launched/*/manifest.json")
        folder = manifest.parent
        out[processes] = (
            load_file(folder / "made.safetensors"), json.loads((folder / "log.json").read_text()),
            json.loads(manifest.read_text()), cache,
        )  # fmt: skip
    return out


def test_two_processes_equal_one_with_the_doubled_batch(made):
    """Twenty updates of both trainings: batches that do not divide evenly, a bank, two draws per update."""
    (one, log, manifest, _), (two, log_two, manifest_two, _) = made[1], made[2]
    assert (manifest["metrics"]["processes"], manifest_two["metrics"]["processes"]) == (1, 2)
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key == "mic.score.3.bias":  # added to all frames before a softmax: its gradient is rounding
            continue
        assert torch.allclose(value, two[key], rtol=0, atol=1e-5), key
    assert one["windows"].shape == (20 * 2 * 5, 6)
    for rows, rows_two in zip(log, log_two, strict=True):
        for row, row_two in zip(rows, rows_two, strict=True):
            assert row == pytest.approx(row_two, abs=1e-5)


def test_the_weights_moved_by_more_than_the_tolerance(made):
    torch.manual_seed(1)
    from kinemic.denoiser import Denoiser

    start = Denoiser(263, 6, dim=16, layers=1, heads=2, ff=16, dropout=0.0).state_dict()
    assert float((start["output_proj.weight"] - made[2][0]["prior.output_proj.weight"]).abs().max()) > 1e-4


def test_processes_of_a_launch_share_one_store(made):
    """One artefact, one lock, nothing partial: the second process left no trace."""
    names = sorted(p.name for p in (made[2][3] / "launched").iterdir())
    assert [n.split(".")[1:] for n in names] == [[], ["lock"]]


def test_a_whole_experiment_gives_the_same_under_a_launch(made):
    """World, prior, adaptation, synthesis, classifier: the same steps under the same keys, the same clips."""
    steps = ("world", "prior", "adapt", "synthesize", "evaluate")
    one, two = ({s: next((made[n][3] / s).glob("*/manifest.json")).parent for s in steps} for n in (1, 2))
    # the key of the last step is made from the clips themselves, to the last bit
    assert [one[s].name for s in steps[:-1]] == [two[s].name for s in steps[:-1]]
    for name in ("prior", "adapt"):
        rows, rows_two = (json.loads((found[name] / "log.json").read_text()) for found in (one, two))
        for row, row_two in zip(rows, rows_two, strict=True):
            assert row == pytest.approx(row_two, rel=1e-4, abs=1e-5)
    with np.load(one["synthesize"] / "clips.npz") as a, np.load(two["synthesize"] / "clips.npz") as b:
        np.testing.assert_array_equal(a["action"], b["action"])
        np.testing.assert_allclose(a["features"], b["features"], atol=1e-3)


def test_parts_cover_the_batch_and_their_weighted_means_are_its_mean():
    values = np.random.default_rng(0).normal(size=11)
    teams = [Team("cpu") for _ in range(4)]
    for rank, team in enumerate(teams):
        team.size, team.rank = 4, rank
    parts = [team.part(11) for team in teams]
    np.testing.assert_array_equal(np.concatenate([np.arange(11)[p] for p in parts]), np.arange(11))
    means = [values[p].mean() * team.weight(11) for p, team in zip(parts, teams, strict=True)]
    assert np.mean(means) == pytest.approx(values.mean())
    with pytest.raises(ValueError, match="3 clips cannot be shared by 4 processes"):
        teams[0].part(3)


def test_a_team_of_one_changes_nothing():
    team, x = Team("cpu"), torch.arange(6.0).reshape(3, 2)
    assert team.main and team.part(3) == slice(0, 3) and team.weight(3) == 1 and team.gather(x, 3) is x
    team.average([x])
    assert torch.equal(x, torch.arange(6.0).reshape(3, 2)) and team.from_main("a") == "a"


def test_a_launch_for_another_device_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="several processes were launched, but not for device 'mps'"):
        Team("mps")
