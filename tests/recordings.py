"""Writers of small motion files in each format that is imported: made here, from no recording."""

import pickle

import numpy as np

from kinemic import motion

MIXAMO = (
    ("Hips", None, (0, 95, 0)), ("Spine", "Hips", (0, 10, -1)), ("Spine1", "Spine", (0, 12, 0)),
    ("Spine2", "Spine1", (0, 12, 1)), ("Neck", "Spine2", (0, 16, -1)), ("Head", "Neck", (0, 9, 3)),
    ("LeftShoulder", "Spine2", (6, 12, 0)), ("LeftArm", "LeftShoulder", (12, 0, -1)),
    ("LeftForeArm", "LeftArm", (27, 0, 0)), ("LeftHand", "LeftForeArm", (26, 0, 0)),
    ("RightShoulder", "Spine2", (-6, 12, 0)), ("RightArm", "RightShoulder", (-12, 0, -1)),
    ("RightForeArm", "RightArm", (-27, 0, 0)), ("RightHand", "RightForeArm", (-26, 0, 0)),
    ("LeftUpLeg", "Hips", (9, -5, 0)), ("LeftLeg", "LeftUpLeg", (0, -42, 0)), ("LeftFoot", "LeftLeg", (0, -43, -2)),
    ("LeftToeBase", "LeftFoot", (1, -8, 13)), ("RightUpLeg", "Hips", (-9, -5, 0)),
    ("RightLeg", "RightUpLeg", (0, -42, 0)), ("RightFoot", "RightLeg", (0, -43, -2)),
    ("RightToeBase", "RightFoot", (-1, -8, 13)),
)  # fmt: skip


def swing(frames, columns, seed=0, size=25.0):
    """Smooth angles in degrees, (frames, columns)."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, columns)
    return size * rng.uniform(0.2, 1, columns) * np.sin(np.arange(frames)[:, None] * 0.15 + phase)


def write_bvh(
    path, bones=MIXAMO, frames=24, seed=0, order="ZXY", moving=(), prefix="", frame_time="0.0333333", indent="  ",
    newline="\n", extra="",
):  # fmt: skip
    """A BVH file; returns names and the (frames, J, 3) joints of the file, by 4 x 4 matrices, one frame at a time.

    `moving` joints have position channels beside the root, with values other than their OFFSET.
    """
    children = {}
    for name, parent, _ in bones:
        children.setdefault(parent, []).append(name)
    table = {name: (parent, np.array(offset, float)) for name, parent, offset in bones}
    (root,) = children[None]
    sequence, lines = [], ["HIERARCHY"]

    def emit(name, depth):
        pad, parent = indent * depth, table[name][0]
        x, y, z = table[name][1]
        places = ["Xposition", "Yposition", "Zposition"] if parent is None or name in moving else []
        channels = places + [f"{axis}rotation" for axis in order]
        sequence.append((name, len(places)))
        lines.append(f"{pad}{'ROOT' if parent is None else 'JOINT'} {prefix}{name}")
        lines.extend([f"{pad}{{", f"{pad}{indent}OFFSET {x:g} {y:g} {z:g}"])
        lines.append(f"{pad}{indent}CHANNELS {len(channels)} {' '.join(channels)}")
        for child in children.get(name, ()):
            emit(child, depth + 1)
        if name not in children:
            lines.extend([f"{pad}{indent}End Site", f"{pad}{indent}{{", f"{pad}{indent * 2}OFFSET 0 1 0",
                          f"{pad}{indent}}}"])  # fmt: skip
        lines.append(f"{pad}}}")

    emit(root, 0)
    width = sum(3 + places for _, places in sequence)
    values, column = swing(frames, width, seed), 0
    for name, places in sequence:
        if places:
            values[:, column : column + 3] = table[name][1] + 0.2 * values[:, column : column + 3]
        column += places + 3
    values = values.round(6)
    lines += ["MOTION", f"Frames:{extra} {frames}", f"Frame Time:{extra} {frame_time}"]
    lines += [" ".join(f"{value:.6f}" for value in row) + extra for row in values]
    path.write_bytes((newline.join(lines) + newline).encode())
    joints = np.empty((frames, len(sequence), 3))
    for frame in range(frames):
        world, column = {}, 0
        for index, (name, places) in enumerate(sequence):
            parent, offset = table[name]
            matrix = np.eye(4)
            matrix[:3, 3] = values[frame, column : column + 3] if places else offset
            for axis, angle in zip(
                order, np.radians(values[frame, column + places : column + places + 3]), strict=True
            ):
                i = "XYZ".index(axis)
                j, k = (i + 1) % 3, (i + 2) % 3
                turn = np.eye(4)
                turn[j, j] = turn[k, k] = np.cos(angle)
                turn[j, k], turn[k, j] = -np.sin(angle), np.sin(angle)
                matrix = matrix @ turn
            world[name] = matrix if parent is None else world[parent] @ matrix
            joints[frame, index] = world[name][:3, 3]
            column += places + 3
    return [name for name, _ in sequence], joints


ASF = """# made for tests
:version 1.10
:name test
:units
  mass 1.0
  length 0.45
  angle deg
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
"""
CMU = (
    ("lhipjoint", "root", (0.66, -0.71, 0.25), 2.5, ""), ("lfemur", "lhipjoint", (0.34, -0.94, 0), 7.6, "rx ry rz"),
    ("ltibia", "lfemur", (0.34, -0.94, 0), 7.3, "rx"), ("lfoot", "ltibia", (0.09, -0.24, 0.97), 2.2, "rx rz"),
    ("rhipjoint", "root", (-0.66, -0.71, 0.25), 2.5, ""), ("rfemur", "rhipjoint", (-0.34, -0.94, 0), 7.6, "rx ry rz"),
    ("rtibia", "rfemur", (-0.34, -0.94, 0), 7.3, "rx"), ("rfoot", "rtibia", (-0.1, -0.28, 0.95), 2.2, "rx rz"),
    ("lowerback", "root", (0, 1, -0.07), 2.1, "rx ry rz"), ("upperback", "lowerback", (0, 1, -0.03), 2.1, "rx ry rz"),
    ("thorax", "upperback", (0, 1, 0), 2.1, "rx ry rz"), ("lowerneck", "thorax", (0, 1, 0.1), 1.6, "rx ry rz"),
    ("upperneck", "lowerneck", (0, 1, -0.06), 1.6, "rx ry rz"), ("lclavicle", "thorax", (0.97, 0.25, 0), 3.7, "ry rz"),
    ("lhumerus", "lclavicle", (1, 0, 0), 4.9, "rx ry rz"), ("lradius", "lhumerus", (1, 0, 0), 3.4, "rx"),
    ("rclavicle", "thorax", (-0.97, 0.21, 0), 3.6, "ry rz"), ("rhumerus", "rclavicle", (-1, 0, 0), 5.0, "rx ry rz"),
    ("rradius", "rhumerus", (-1, 0, 0), 3.4, "rx"),
)  # fmt: skip


def write_amc(folder, frames=24, seed=0, subject="07"):
    """An ASF and an AMC file `<subject>_01`; returns the path of the AMC."""
    lines = [ASF.rstrip()]
    for number, (name, _, direction, length, dof) in enumerate(CMU, start=1):
        lines += ["  begin", f"    id {number}", f"    name {name}", f"    direction {' '.join(map(str, direction))}",
                  f"    length {length}", f"    axis 0 0 {5 * number % 90}  XYZ"]  # fmt: skip
        lines += [f"    dof {dof}", "    limits (-90.0 90.0)"] if dof else []
        lines.append("  end")
    lines += [":hierarchy", "  begin"]
    for parent in dict.fromkeys(row[1] for row in CMU):
        lines.append(f"    {parent} " + " ".join(row[0] for row in CMU if row[1] == parent))
    lines.append("  end")
    (folder / f"{subject}.asf").write_text("\n".join(lines) + "\n")
    moving = [("root", 6)] + [(name, len(dof.split())) for name, *_, dof in CMU if dof]
    values = swing(frames, sum(n for _, n in moving), seed, 15)
    values[:, :3] = values[:, :3] * 0.02 + [0, 16, 0]
    lines = ["# made for tests", ":FULLY-SPECIFIED", ":DEGREES"]
    for frame in range(frames):
        lines.append(str(frame + 1))
        column = 0
        for name, count in moving:
            lines.append(name + " " + " ".join(f"{x:.5f}" for x in values[frame, column : column + count]))
            column += count
    path = folder / f"{subject}_01.amc"
    path.write_text("\n".join(lines) + "\n")
    return path


def amass_arrays(frames=24, seed=0):
    poses = np.radians(swing(frames, 156, seed, 20))
    poses[:, :3] += [np.pi / 2, 0, 0]  # the body model stands along y, AMASS along z
    trans = np.stack([np.arange(frames) * 0.01, np.zeros(frames), np.full(frames, 0.9)], axis=1)
    return {"poses": poses, "trans": trans, "betas": np.zeros(16), "gender": np.array("neutral"),
            "mocap_framerate": np.array(60.0)}  # fmt: skip


KINECT = {  # joints of one who stands, metres from the base of the spine
    0: (0, 0, 0), 1: (0, 0.3, 0), 2: (0, 0.6, 0), 3: (0, 0.75, 0.02), 4: (0.18, 0.5, 0), 5: (0.2, 0.22, 0),
    6: (0.22, 0, 0.02), 7: (0.22, -0.08, 0.03), 8: (-0.18, 0.5, 0), 9: (-0.2, 0.22, 0), 10: (-0.22, 0, 0.02),
    11: (-0.22, -0.08, 0.03), 12: (0.09, -0.05, 0), 13: (0.1, -0.45, 0.01), 14: (0.1, -0.85, -0.02),
    15: (0.11, -0.9, 0.1), 16: (-0.09, -0.05, 0), 17: (-0.1, -0.45, 0.01), 18: (-0.1, -0.85, -0.02),
    19: (-0.11, -0.9, 0.1), 20: (0, 0.52, 0), 21: (0.22, -0.12, 0.04), 22: (0.2, -0.07, 0.06),
    23: (-0.22, -0.12, 0.04), 24: (-0.2, -0.07, 0.06),
}  # fmt: skip


def kinect_body(frames=24, seed=0, size=0.1, place=(0.0, 0.0, 3.0)):
    """(frames, 25, 3) metres: a body whose joints sway by `size`."""
    rest = np.array([KINECT[i] for i in range(25)])
    sway = swing(frames, 75, seed, size).reshape(frames, 25, 3) * np.linspace(0.2, 1, 25)[None, :, None]
    return rest + sway + np.array(place)


def write_ntu(path, bodies, frames=None):
    """An NTU `.skeleton` file of `bodies`: id -> {frame: (25, 3)}."""
    frames = max(max(track) for track in bodies.values()) + 1 if frames is None else frames
    lines = [str(frames)]
    for frame in range(frames):
        here = {body: track[frame] for body, track in bodies.items() if frame in track}
        lines.append(str(len(here)))
        for body, joints in here.items():
            lines += [f"{body} 0 1 1 0 0 0 0.1 -0.1 2", "25"]
            lines += [" ".join(f"{x:.6f}" for x in joint) + " 250 200 960 540 0 0 0 1 2" for joint in joints]
    path.write_text("\n".join(lines) + "\n")


def write_pyskl(path, items, protocol=4, split=None):
    """A pyskl pickle of `items`: (frame_dir, label, keypoint)."""
    notes = [{"frame_dir": name, "label": label, "total_frames": keypoint.shape[1], "keypoint": keypoint}
             for name, label, keypoint in items]  # fmt: skip
    split = {"xsub_train": [name for name, *_ in items]} if split is None else split
    path.write_bytes(pickle.dumps({"split": split, "annotations": notes}, protocol=protocol))


def write_vectors(folder, walk, names=("a1",), rows=30):
    """A HumanML3D folder with features of the fixture `walk`; returns them by name."""
    made = {}
    for part in ("new_joint_vecs", "texts"):
        (folder / part).mkdir(parents=True)
    for seed, name in enumerate(names):
        made[name] = motion.process(walk(rows + 1, seed=seed), 20)
        np.save(folder / "new_joint_vecs" / f"{name}.npy", made[name])
        (folder / "texts" / f"{name}.txt").write_text("a person walks#a/X person/X walks/X#0.0#0.0\n")
    (folder / "train.txt").write_text("".join(f"{name}\n" for name in names))
    return made
