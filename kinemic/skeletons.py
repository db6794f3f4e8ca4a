"""Skeletons: what the joints of a recording are called and how they become the 22 joints of the package.

A skeleton is a small table: names, parents, units, the axis that points up, and for each of the 22 joints a name or a
weighted mix of names. `skeletons.yaml` holds the known ones and explains the keys; a user's own table is a file with
the keys of one entry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kinemic import motion

__all__ = ["Skeleton", "known", "load", "recognise"]

_TABLE = Path(__file__).with_name("skeletons.yaml")
_KEYS = ("about", "metres_per_unit", "up", "joints", "mapping", "trunk", "base")
_DIRECTIONS = ("up", "forward")
_MAX_BYTES = 2**20
# columns: where the x, y and z of a file go when its axis points up; rotations all, so that left stays left
_TURNS = {
    "y": np.eye(3),
    "-y": np.diag([1.0, -1.0, -1.0]),
    "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "-z": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "x": np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]]),
    "-x": np.array([[0, 1.0, 0], [-1, 0, 0], [0, 0, 1]]),
}


@dataclass(frozen=True)
class Skeleton:
    """A table of joints.

    Args:
        name: how it is called on the command line.
        mapping: each of the 22 joints -> {source joint: weight}, weights adding up to 1; beside names, `up` and
            `forward` are metres along directions of the trunk.
        unit: metres per unit of length in the file.
        up: axis of the file that points up: "x", "y", "z", "-x", "-y" or "-z".
        joints: source joint -> parent (None for the root), in the order of arrays; may be empty for files that name
            their joints themselves.
        trunk: lower end, upper end, left and right shoulder, for mappings with directions.

    Raises:
        ValueError: a joint of the 22 that is missing, an unknown name, weights that do not add up to 1, a unit that is
            not positive, an unknown axis, an unknown parent.
    """

    name: str
    mapping: Mapping[str, Mapping[str, float]]
    unit: float
    up: str = "y"
    joints: Mapping[str, str | None] = field(default_factory=dict)
    trunk: tuple[str, ...] = ()

    def __post_init__(self):
        if self.up not in _TURNS:
            raise ValueError(f"up is {self.up!r}, expected one of {', '.join(_TURNS)}")
        if not 1e-6 <= self.unit <= 1e6:
            raise ValueError(f"metres_per_unit is {self.unit}, expected a positive number such as 0.01 for centimetres")
        for joint, parent in self.joints.items():
            if parent is not None and (parent == joint or parent not in self.joints):
                raise ValueError(f"joint {joint} has parent {parent!r}, expected null or another joint of the table")
        if self.trunk and len(self.trunk) != 4:
            raise ValueError(f"trunk has {len(self.trunk)} names, expected lower, upper, left and right shoulder")
        missing = [joint for joint in motion.JOINT_NAMES if joint not in self.mapping]
        extra = [joint for joint in self.mapping if joint not in motion.JOINT_NAMES]
        if missing or extra:
            found = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(extra)}"
            raise ValueError(f"mapping {found}, expected exactly the 22 joints {', '.join(motion.JOINT_NAMES)}")
        for joint, mix in self.mapping.items():
            total = sum(weight for source, weight in mix.items() if not self._is_direction(source))
            if not math.isclose(total, 1.0, abs_tol=1e-6):
                raise ValueError(f"weights of {joint} add up to {total:g}, expected 1")
        unknown = sorted(set(self.sources) - self.joints.keys()) if self.joints else []
        if unknown:
            raise ValueError(f"mapping uses {', '.join(unknown)}, expected names from joints")

    def _is_direction(self, source):
        return bool(self.trunk) and source in _DIRECTIONS

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the joints that the mapping needs, each once."""
        used = [source for mix in self.mapping.values() for source in mix if not self._is_direction(source)]
        return tuple(dict.fromkeys([*used, *self.trunk]))

    def upright(self, points: np.ndarray) -> np.ndarray:
        """Points `(..., 3)` of a file in metres with y up: `(..., 3)` float64."""
        points = np.asarray(points, dtype=np.float64) * self.unit
        return points if self.up == "y" else points @ _TURNS[self.up].T

    def find(self, names: Sequence[str]) -> dict[str, int]:
        """Position of each needed joint among the names of a file, with or without a prefix such as `mixamorig:`.

        Raises:
            ValueError: joints that are not there, or that are there twice.
        """
        places = {name: [i for i, n in enumerate(names) if n == name] for name in self.sources}
        if not all(places.values()):
            bare = [_bare(name) for name in names]
            places = {name: found or [i for i, n in enumerate(bare) if n == name] for name, found in places.items()}
        missing = [name for name, found in places.items() if not found]
        if missing:
            raise ValueError(f"skeleton {self.name} needs {_some(missing)}, found the joints {_some(names)}")
        double = next((name for name, found in places.items() if len(found) > 1), None)
        if double is not None:
            raise ValueError(f"joint {double} is there {len(places[double])} times, expected one person per file")
        return {name: found[0] for name, found in places.items()}

    def body(self, joints: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """The 22 joints.

        Args:
            joints: (T, J, 3) metres, y up.
            names: J names of the source.

        Returns:
            (T, 22, 3) float64, metres, y up.

        Raises:
            ValueError: as `find`.
        """
        places = self.find(names)
        weights = np.zeros((motion.NUM_JOINTS, len(names)))
        offsets = np.zeros((motion.NUM_JOINTS, len(_DIRECTIONS)))
        for row, joint in enumerate(motion.JOINT_NAMES):
            for source, weight in self.mapping[joint].items():
                if self._is_direction(source):
                    offsets[row, _DIRECTIONS.index(source)] = weight
                else:
                    weights[row, places[source]] = weight
        plain = (weights != 0).sum(axis=1) == 1
        body = joints[:, weights.argmax(axis=1)]
        body[:, ~plain] = np.einsum("kj,tjc->tkc", weights[~plain], joints)
        if offsets.any():
            low, high, left, right = (joints[:, places[name]] for name in self.trunk)
            up = _unit(high - low)
            body = body + np.einsum("kd,dtc->tkc", offsets, [up, _unit(np.cross(up, right - left))])
        return body


@cache
def known() -> Mapping[str, Skeleton]:
    """The skeletons of the package by name."""
    table = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return {name: _build(name, entry) for name, entry in table.items()}


def load(name: str | Path) -> Skeleton:
    """A known skeleton by its name, or a user's own from a YAML file (a path that ends in .yaml or .yml).

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, a file that is not such a table, or as `Skeleton`.
    """
    if not str(name).endswith((".yaml", ".yml")):
        if name not in known():
            raise ValueError(f"no skeleton {str(name)!r}, expected one of {', '.join(known())} or the path of a .yaml")
        return known()[name]
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, expected a skeleton as YAML; check the path")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"the file has more than {_MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):  # nested, they ask for any memory
            raise ValueError("the file has YAML aliases; write the joints out")
        entry = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())[:200]}); mend the file") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return _build(path.stem, entry)
    except ValueError as error:
        raise ValueError(f"skeleton {path}: {error}") from error


def recognise(names: Sequence[str]) -> Skeleton:
    """The known skeleton that fits the names of a file; of several, the one that names most of its joints.

    Raises:
        ValueError: none fits; the message says which comes near, if one does, and how to give one's own.
    """
    lacking = {}
    bare = {_bare(name) for name in names} | set(names)
    for skeleton in known().values():
        lacking[skeleton.name] = [source for source in skeleton.sources if source not in bare]
    fitting = [name for name, missing in lacking.items() if not missing]
    if not fitting:
        shown = [name for name in names if not name.endswith("_end")]  # end sites of a BVH file
        near = min(lacking, key=lambda name: len(lacking[name]) / len(known()[name].sources))
        found = f"no known skeleton fits the joints {_some(shown)}"
        if 2 * len(lacking[near]) > len(known()[near].sources):  # a base that shares next to nothing is of no help
            mend = "write a table that maps the 22 joints to them (an example: kinemic import --help)"
        else:
            found += f"; nearest is {near}, which needs {_some(lacking[near])}"
            mend = f"write a table with `base: {near}` and a mapping of what differs"
        raise ValueError(f"{found}; {mend}, and pass it as the skeleton (--skeleton FILE.yaml)")
    return known()[max(fitting, key=lambda name: len(known()[name].joints.keys() & bare))]


def _build(name: str, entry: Any) -> Skeleton:
    """One entry of the table; every mistake of a user's file is a ValueError."""
    if not isinstance(entry, dict):
        raise ValueError(f"the table is {type(entry).__name__}, expected keys such as {', '.join(_KEYS[1:5])}")
    unknown = sorted(str(key) for key in entry.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}, expected {', '.join(_KEYS)}")
    base = entry.get("base")
    if base is not None and str(base) not in known():
        raise ValueError(f"base is {base!r}, expected one of {', '.join(known())}")
    if base is not None:
        parent = known()[base]
        joints, mapping, unit, up, trunk = parent.joints, dict(parent.mapping), parent.unit, parent.up, parent.trunk
    else:
        joints, mapping, unit, up, trunk = {}, {}, None, None, ()
    unit, up = entry.get("metres_per_unit", unit), str(entry.get("up", up))
    if isinstance(unit, bool) or not isinstance(unit, int | float):
        raise ValueError(f"metres_per_unit is {unit!r}, expected a number such as 0.01 for centimetres")
    joints = entry.get("joints", {} if "mapping" in entry else joints)  # other names than those of the base
    if not isinstance(joints, dict) or not all(
        isinstance(joint, str) and (parent is None or isinstance(parent, str)) for joint, parent in joints.items()
    ):
        raise ValueError("joints are not a table of name: parent; write the root's parent as null")
    given = entry.get("mapping", {})
    if not isinstance(given, dict):
        raise ValueError(f"mapping is {type(given).__name__}, expected one of the 22 joints: name or weights")
    mapping |= {str(joint): _mix(joint, mix) for joint, mix in given.items()}
    if not mapping:
        mapping = {joint: {joint: 1.0} for joint in motion.JOINT_NAMES}
    trunk = entry.get("trunk", trunk)
    if not isinstance(trunk, list | tuple) or not all(isinstance(joint, str) for joint in trunk):
        raise ValueError("trunk is not a list of four joint names")
    return Skeleton(name, mapping, float(unit), up, joints, tuple(trunk))


def _mix(joint, mix):
    if isinstance(mix, str):
        return {mix: 1.0}
    numbers = mix.values() if isinstance(mix, dict) else [None]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise ValueError(f"mapping of {joint} is {mix!r}, expected a name or name: weight")
    return {str(source): float(weight) for source, weight in mix.items()}


def _bare(name):
    return re.sub(r"^.*[:|]|^mixamorig\d*_?", "", name)


def _some(names, most=30):
    names = list(names)
    return ", ".join(str(name)[:40] for name in names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
