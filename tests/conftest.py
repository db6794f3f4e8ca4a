"""Fixtures shared by all tests: a walking skeleton made on the spot, and real motion data where the machine has it."""

import os
from pathlib import Path

import numpy as np
import pytest

from kinemic import motion


@pytest.fixture(scope="session")
def shared_data():
    """Folder with real motion data: `KINEMIC_SHARED_DATA`, or `../shared/data` beside the checkout; else skips."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("KINEMIC_SHARED_DATA", default))
    if not (folder / "README.md").is_file():
        pytest.skip("no real motion data beside the checkout: set KINEMIC_SHARED_DATA to a folder that holds it")
    return folder


@pytest.fixture(scope="session")
def walk():
    """Factory of a person who walks on a curve: `walk(frames, heading, turn, seed)` -> (frames, 22, 3) metres, 20 fps.

    Positions come from hand-set joint angles on the reference bones, so every bone length is constant by construction.
    """

    def make(frames=60, heading=0.3, turn=0.02, seed=0):
        rng = np.random.default_rng(seed)
        phase = 2 * np.pi * (np.arange(frames) / 22.0 + rng.uniform())
        swing = 0.5 + 0.2 * rng.uniform()
        angle = np.zeros((frames, 22))  # rotation of each bone about the body's left axis, radians, in the root frame
        angle[:, 4], angle[:, 5] = swing * np.sin(phase), -swing * np.sin(phase)
        angle[:, 7] = angle[:, 4] + 0.6 * (1 + np.cos(phase)) / 2
        angle[:, 8] = angle[:, 5] + 0.6 * (1 - np.cos(phase)) / 2
        angle[:, 18], angle[:, 19] = -0.4 * np.sin(phase), 0.4 * np.sin(phase)
        angle[:, 20], angle[:, 21] = angle[:, 18] - 0.4, angle[:, 19] - 0.4
        yaw = heading + turn * np.arange(frames)
        root = np.zeros((frames, 3))
        root[:, 0], root[:, 2] = np.cumsum(0.05 * np.sin(yaw)), np.cumsum(0.05 * np.cos(yaw))
        root[:, 1] = 0.93 + 0.02 * np.cos(2 * phase)
        joints = np.zeros((frames, 22, 3))
        for child in range(1, 22):
            x, y, z = motion.OFFSETS[child]
            c, s = np.cos(angle[:, child]), np.sin(angle[:, child])
            bone = np.stack([np.full(frames, x), c * y - s * z, s * y + c * z], axis=-1)
            joints[:, child] = joints[:, motion.PARENTS[child]] + bone
        c, s = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
        x, z = joints[..., 0].copy(), joints[..., 2].copy()
        joints[..., 0], joints[..., 2] = c * x + s * z, -s * x + c * z
        return joints + root[:, None]

    return make
