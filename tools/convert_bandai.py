"""Import a pack of the Bandai-Namco-Research-Motiondataset: whole, or as a source and a target. Its BVH files need only
`kinemic import`.

    python tools/convert_bandai.py --pack PACK --out OUT
    python tools/convert_bandai.py --pack PACK --out OUT --target-contents wave-left-hand wave-right-hand --train-group
    2A

PACK holds `bandai_joints22_30fps.npz` (keys `delta` int16 (66, F), `root_delta` int32 (2, F), `offsets` int32, `fps`:
differences along time in units of 0.1 mm, 22 joints in HumanML3D order), `index.csv` (name, dataset, content, style,
take, start, frames, subject_group, near_duplicate_of) and `captions.json` (sentences per content, a phrase per style).
OUT becomes a folder with all clips. With target contents it gets `source/` (list `train`) and `target/` (lists `pool`,
`test`) instead, without near duplicates. The action is the content in words, the subject the actor; `kinemic.importing`
does the rest, in pieces of at most 196 frames.

With --video-like the target clips are disturbed to resemble joints estimated from video: no root motion, tilt, depth
scale, slow and fast noise, frozen limbs. The random numbers of a clip depend on its name only.

The data are (c) 2022 Bandai Namco Research Inc., CC BY-NC 4.0: non-commercial use, with attribution.
"""

from __future__ import annotations

import argparse
import csv
import json
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from kinemic import data, importing, motion, skeletons
from kinemic.formats import Recording

MAX_FRAMES = 196
UNIT = 1e-4  # metres
ATTRIBUTION = """Motions derive from the Bandai-Namco-Research-Motiondataset, (c) 2022 Bandai Namco Research Inc., CC
BY-NC 4.0, https://github.com/BandaiNamcoResearchInc/Bandai-Namco-Research-Motiondataset (Kobayashi et al.,
arXiv:2306.08861). Changed: 22 joint positions, 20 fps, HumanML3D bone lengths and placement, cut to pieces{changes}."""
ARMS_AND_LEGS = ((16, (18, 20)), (17, (19, 21)), (1, (4, 7, 10)), (2, (5, 8, 11)))  # fixed end, joints that follow


def read_pack(folder: Path) -> tuple[list[dict[str, str]], list[np.ndarray], float, dict]:
    """Rows of the index, joints `(T, 22, 3)` of each row in metres, frames per second, captions."""
    paths = [folder / name for name in ("bandai_joints22_30fps.npz", "index.csv", "captions.json")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, expected a pack with npz, index.csv and captions.json")
    with np.load(paths[0]) as pack:
        # the coder lets 16-bit sums wrap around, so the reader must too
        joints = np.cumsum(pack["delta"], axis=1, dtype=np.int16).T.reshape(-1, motion.NUM_JOINTS, 3).astype(np.float64)
        joints[..., [0, 2]] += np.cumsum(pack["root_delta"], axis=1, dtype=np.int32).T[:, None]
        offsets, fps = pack["offsets"], float(pack["fps"])
    with open(paths[1], newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if len(rows) != len(offsets) - 1:
        raise ValueError(f"{paths[1]} has {len(rows)} rows, expected {len(offsets) - 1} as in {paths[0].name}")
    clips = [joints[a:b] * UNIT for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    return rows, clips, fps, json.loads(paths[2].read_text(encoding="utf-8"))


def tilt(pitch: float, roll: float) -> np.ndarray:
    """Rotation matrix of a pitch about x after a roll about z, radians."""
    cp, sp, cr, sr = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    return np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]) @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])


def video_like(joints: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A clip `(T, 22, 3)` at 20 fps as a pose estimator might see it: a simulation of the gap to video.

    On two-hand and one-hand gestures and walks, after processing: root-relative joint speed 0.43 m/s, jerk 264 m/s^3,
    24 % of the velocity energy above 5 Hz. Joints that VIBE estimated from 30 NTU RGB+D videos, on the same bones, have
    0.40 m/s, 297 m/s^3 and 25 %.
    """
    ends = (rng.uniform(0, 0.15, size=2) * len(joints)).astype(int)
    joints = joints[ends[0] : len(joints) - ends[1]]
    # reference bones first: stretching short bones later would stretch the noise with them
    joints = motion.canonicalize(motion.retarget(joints))
    joints = joints - joints[:, :1] * [1.0, 0.0, 1.0]
    yaw, (pitch, roll) = rng.uniform(-0.3, 0.3), rng.normal(0, 0.07, size=2)
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    pelvis = joints[:, :1]
    joints = (joints - pelvis) @ (tilt(pitch, roll) @ turn).T * [1.0, 1.0, rng.uniform(0.8, 1.1)] + pelvis

    limbs = [joint for _, follow in ARMS_AND_LEGS for joint in follow]
    slow, fast = np.full((motion.NUM_JOINTS, 1), 0.01), np.full((motion.NUM_JOINTS, 1), 0.002)
    slow[limbs], fast[limbs] = 0.025, 0.005
    slow[0] = fast[0] = 0.0
    drift = rng.normal(size=joints.shape)
    for t in range(1, len(drift)):
        drift[t] = 0.97 * drift[t - 1] + np.sqrt(1 - 0.97**2) * drift[t]
    joints = joints + slow * drift + fast * rng.normal(size=joints.shape)

    freeze, limb, length = rng.random() < 0.35, rng.integers(len(ARMS_AND_LEGS)), int(rng.integers(8, 21))
    start = int(rng.integers(max(1, len(joints) - length + 1)))
    if freeze:
        anchor, follow = ARMS_AND_LEGS[limb]
        held = joints[start, follow] - joints[start, anchor]
        joints[start : start + length, follow] = joints[start : start + length, [anchor]] + held
    return joints


def convert(
    pack: Path,
    out: Path,
    target_contents: list[str] | None = None,
    train_group: str | None = None,
    source_list: Path | None = None,
    video: bool = False,
) -> dict[str, int]:
    """Write `out`, or `out/source` and `out/target` where there are target contents; returns clips per list."""
    target_contents = target_contents or []
    if target_contents and not train_group:
        raise ValueError("there are target contents and no training group; name the actor of the few-shot pool")
    rows, all_joints, fps, captions = read_pack(pack)
    contents = {row["content"] for row in rows}
    unknown = sorted(set(target_contents) - contents)
    if unknown:
        known = ", ".join(sorted(contents))
        raise ValueError(f"content {unknown[0]} is not in the index of {pack}, expected some of {known}")
    wanted = None
    if source_list is not None:
        wanted = set(source_list.read_text(encoding="utf-8").split())
        missing = sorted(wanted - {row["name"] for row in rows})
        if missing:
            raise ValueError(f"{source_list}: {missing[0]} is not in the index, expected names of clips, one per line")

    source, target, sides = [], [], Counter()
    humanml3d = skeletons.load("humanml3d")
    for row, joints in zip(rows, all_joints, strict=True):
        name, content, actor = row["name"], row["content"], row["subject_group"]
        if target_contents and row["near_duplicate_of"]:
            continue
        sentences, style, rate = captions["contents"][content], captions["styles"][row["style"]], fps
        labels = dict(action=content.replace("-", " "), subject=actor)
        if content in target_contents:
            if video:
                rng, rate = np.random.default_rng(zlib.crc32(name.encode())), motion.FPS
                joints = video_like(motion.resample(joints, fps), rng)
            side = "pool" if actor == train_group else "test"
            labels |= dict(captions=sentences, splits=(side,), floor="lowest" if video else "min")
        elif wanted is None or name in wanted:
            side = "source"
            labels |= dict(captions=[f"{sentence} {style}" for sentence in sentences])
        else:
            continue
        sides[side] += 1
        labels["captions"] = tuple(data.Caption(text) for text in labels["captions"])
        made = Recording(name, joints, rate, motion.JOINT_NAMES, humanml3d, "Bandai pack", **labels)
        (source if side == "source" else target).append(made)
    needed = ("source", "pool", "test") if target_contents else ("source",)
    if not all(sides[side] for side in needed):
        counts = f"{sides['source']} source, {sides['pool']} pool and {sides['test']} test clips"
        raise ValueError(f"selection gives {counts}, expected some of each; check the contents and the training group")

    plain = ATTRIBUTION.format(changes="")
    changed = ATTRIBUTION.format(changes="; disturbed to resemble joints estimated from video") if video else plain
    if not target_contents:
        return {"train": importing.convert(source, out, licence=plain, max_frames=MAX_FRAMES)["clips"]}
    first = importing.convert(source, out / "source", licence=plain, max_frames=MAX_FRAMES)
    second = importing.convert(target, out / "target", licence=changed, max_frames=MAX_FRAMES)
    motion.Normalizer.load(out / "source").save(out / "target")
    return {"source": first["clips"]} | second["lists"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, metavar="FOLDER", help="the pack to read")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--target-contents", nargs="+", metavar="CONTENT", help="contents for classes")
    parser.add_argument("--train-group", metavar="ACTOR", help="subject_group of the few-shot pool")
    parser.add_argument("--source-list", type=Path, metavar="FILE", help="names of source clips; default: all others")
    parser.add_argument("--video-like", action="store_true", help="disturb the target clips to resemble video joints")
    args = parser.parse_args(argv)
    try:
        counts = convert(args.pack, args.out, args.target_contents, args.train_group, args.source_list, args.video_like)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(", ".join(f"{split}: {count} clips" for split, count in counts.items()))


if __name__ == "__main__":
    main()
