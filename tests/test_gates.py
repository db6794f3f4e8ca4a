"""The method at work, small: does mining find the action, does the weight know, do samples show what was asked for?

A few classes and steps with the shipped prior on a small world of the same version, one draw: gates, not measurements.
The third is not passed; it stays here, marked, with what was found.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from kinemic.artefacts import ROOT, Store
from kinemic.config import Experiment
from kinemic.pipeline import Lab

CLASSES = ("hand waving", "pick up", "run on the spot", "side kick", "squat down")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    prior = tmp_path_factory.mktemp("prior")
    for name in ("model.safetensors", "config.json"):  # without the manifest, which names a larger world
        shutil.copy(ROOT / "kinemic" / "priors" / "embedded" / name, prior)
    lab = Lab(Experiment.load("embedded", settings={
        "world": {"source_clips": 150, "pool_clips": 24, "test_clips": 1}, "pretrain": {"checkpoint": str(prior)},
        "mining": {"top_k": 20}, "adapt": {"steps": 60}, "synthesis": {"per_class": 16},
        "har": {"referee_updates": 300},
    }), Store(tmp_path_factory.mktemp("store")), progress=False)  # fmt: skip
    d = lab.data
    lab.data = replace(
        d, classes=CLASSES, pool=[c for c in d.pool if c.action in CLASSES],
        test=[c for c in d.test if c.action in CLASSES], truth={name: d.truth[name] for name in CLASSES},
    )  # fmt: skip
    return lab


def test_attention_finds_the_action_better_than_chance(lab):
    found = lab.window_quality(lab.mine(0, per_class=20))
    # An entry cut for one caption shows one action from end to end: every start is good, and nothing can be gained.
    room = found["oracle"] - found["random"] > 0.2
    gain = (found["iou"] - found["random"])[room].mean()
    assert room.sum() >= 10 and gain > 0.1, f"IoU above random by {gain:.3f} in {room.sum()} entries with room"


def test_right_windows_weigh_more_than_wrong_ones(lab):
    step, row, _, _, shot, gamma = np.load(lab.adapt(0).folder / "windows.npy").T
    actions = lab.data.labels(lab.shots(0))[shot.astype(int)]
    right, late = lab.relevance()[actions, row.astype(int)], step >= step.max() / 2
    apart = [
        gamma[late & right & (actions == k)].mean() - gamma[late & ~right & (actions == k)].mean()
        for k in range(len(CLASSES)) if (late & right & (actions == k)).any() and (late & ~right & (actions == k)).any()
    ]  # fmt: skip
    assert np.mean(apart) > 0, f"weights of right windows minus wrong ones, by class: {np.round(apart, 3)}"


@pytest.mark.xfail(
    reason="found in three runs of this size: 0.69, 0.80, 0.73 of 80 samples of the method are recognised, 0.71, 0.91, "
    "0.81 of naive fine-tuning; chapter 5 has the difference at the embedded scale, over draws"
)
def test_samples_of_the_method_are_recognised_more_often_than_naive_ones(lab):
    shares = {}
    for method in ("kinemic", "naive"):
        clips = lab.load_clips(lab.synthesize(lab.adapt(0, method=method), 0))
        shares[method] = lab.judge(lab.training_set(clips, synthetic=True), lab.data.pool)["recognised"]
    assert shares["kinemic"] > shares["naive"], shares
