"""What each deviation of the reference implementation changes, one switch at a time, on the embedded world.

    python benchmarks/reference.py [--quick] [--steps N] [--seeds N] [--out FILE]

The baseline is the `corrected` configuration at the embedded scale, on draw 0, with a quarter of its adaptation steps.
Every row takes one switch of `config.DEVIATIONS` as the reference implementation has it and leaves all others alone;
the last rows take them all (behaviour `reference`). Items are paired: windows by source motion and length, synthetic
clips by class, length and initial noise, test clips by themselves. The interval of a difference (reference minus
corrected) is a bootstrap over items at confidence 0.95; it does not cover another draw of shots or another training.

Two switches cannot stand alone and are compared on a changed baseline: a time map needs two numbers of diffusion steps
(100 on both sides), and the reference's alignment of classifier input rules augmentation out (none on both sides).
One referee, trained on corrected clips, judges the synthetic clips of all rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kinemic import metrics
from kinemic.artefacts import RECORD, environment, write_json
from kinemic.config import BEHAVIOURS, DEVIATIONS, Experiment
from kinemic.pipeline import Lab

IOU, RECOGNISED, TREMOR = "mining IoU", "recognised share", "energy above 5 Hz"
REAL, BOTH, GAIN = "top-1, real", "top-1, real and synthetic", "top-1 gained by synthetic clips"
GENERATED = (IOU, RECOGNISED)


@dataclass(frozen=True)
class Row:
    """One comparison: what the switch changes, the measures that can show it, and what both sides share besides."""

    changes: str
    measures: tuple[str, ...]
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


ROWS = {
    "prior time map": Row(
        "the teacher is told more noise than its clips carry", GENERATED, {"adapt": {"num_timesteps": 100}}
    ),
    "diffusion steps": Row("half of the time codes are new to the prior", GENERATED),
    "condition dropping": Row("both conditions are absent in 1 of 100 samples instead of 10", GENERATED),
    "teacher mode": Row("the teacher's latents carry dropout and missing captions", GENERATED),
    "retargeting": Row("target bodies keep their own proportions", (IOU, REAL, BOTH)),
    "short sources": Row("the generator trains on frozen last frames", GENERATED),
    "window features": Row("rotations of windows refer to a heading before them", GENERATED),
    "action table": Row("random tags that hardly move", GENERATED),
    "drawn vectors": Row("positions are taken as drawn, against their velocities", (RECOGNISED, TREMOR, BOTH)),
    "classifier input": Row("trunk off the vertical, by the first pose", (REAL, BOTH), {"har": {"augment": "none"}}),
    "update counts": Row("small training sets get few updates", (REAL, BOTH, GAIN)),
    "best epoch": Row("the epoch is chosen on the test list", (REAL, BOTH)),
    "all": Row("all of the above", (IOU, RECOGNISED, TREMOR, REAL, BOTH, GAIN)),
}
SWITCHES = {**DEVIATIONS, "all": BEHAVIOURS["reference"]}


@dataclass
class Side:
    """One configuration and its scores: measure -> one number per item."""

    lab: Lab
    adapted: Any = None
    synthetic: list = field(default_factory=list)
    scores: dict[str, np.ndarray] = field(default_factory=dict)


def joined(*layers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sections of several layers, the last one wins."""
    out: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for name, fields in layer.items():
            out.setdefault(name, {}).update(fields)
    return out


def score(side: Side, wanted: set[str], referee) -> None:
    """Fill in the measures of one side."""
    lab, cfg = side.lab, side.lab.cfg
    made = lab.training_set(side.synthetic, synthetic=True)
    if IOU in wanted:
        windows = lab.mine(0, per_class=cfg.synthesis.per_class, adapted=side.adapted)
        side.scores[IOU] = lab.window_quality(windows)["iou"]
    if RECOGNISED in wanted:
        side.scores[RECOGNISED] = 1.0 * (referee.predict(made.joints).argmax(1) == made.labels)
    if TREMOR in wanted:
        side.scores[TREMOR] = np.array([metrics.high_frequency_share(j) for j in made.joints])
    sets = {REAL: lab.training_set(lab.shots(0))}
    sets[BOTH] = sets[REAL] + made
    asked = [m for m in sets if m in wanted or GAIN in wanted]
    for measure, found in zip(asked, lab.each("evaluate", [{"training": sets[m]} for m in asked]), strict=True):
        side.scores[measure] = (found["predictions"] == found["labels"]).mean(0)
    if GAIN in wanted:
        side.scores[GAIN] = side.scores[BOTH] - side.scores[REAL]


def compare(theirs: np.ndarray, ours: np.ndarray, seed: int) -> tuple[float, float, float, int]:
    """Difference with its interval, and the number of items; a wrongly retrieved motion has no segment to hit."""
    valid = ~np.isnan(theirs + ours)
    a, b = theirs[valid], ours[valid]
    if len(a) < 2 or np.array_equal(a, b):
        return float((a - b).mean()) if len(a) else 0.0, 0.0, 0.0, len(a)
    return *metrics.paired_interval(a, b, np.random.default_rng(seed)), len(a)


def values_of(cfg: Experiment, sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Values that a configuration has for the fields of a switch."""
    return ", ".join(f"{s}.{f} = {getattr(getattr(cfg, s), f)!r}" for s, fields in sections.items() for f in fields)


def main() -> None:
    """Run and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke scale: checks that everything runs")
    parser.add_argument("--steps", type=int, default=0, help="adaptation steps; default a quarter of the scale's")
    parser.add_argument("--seeds", type=int, default=3, help="classifiers per training set")
    parser.add_argument("--out", type=Path, default=RECORD / "benchmarks" / "reference.json")
    options = parser.parse_args()
    if set(ROWS) != set(SWITCHES):
        sys.exit(f"switches without a row, or rows without a switch: {sorted(set(ROWS) ^ set(SWITCHES))}")
    base = Experiment.load("smoke" if options.quick else "embedded")
    steps = options.steps or max(2, base.adapt.steps // 4)
    base = base.override(adapt={"steps": steps}, har={"seeds": options.seeds})

    sides: dict[str, Side] = {}  # by their settings: rows share baselines

    def side(*layers: Mapping[str, Mapping[str, Any]]) -> Side:
        cfg = base.override(**joined(*layers))
        return sides.setdefault(cfg.model_dump_json(), Side(Lab(cfg, progress=sys.stderr.isatty())))

    pairs = {name: (side(row.beside, SWITCHES[name]), side(row.beside)) for name, row in ROWS.items()}
    wanted: dict[int, set[str]] = {}
    for name, both in pairs.items():
        for one in both:
            wanted.setdefault(id(one), set()).update(ROWS[name].measures)

    # Sides that differ in the adaptation alone go through one laboratory: `each` computes them side by side.
    shared: dict[str, list[Side]] = {}
    for one in sides.values():
        rest = one.lab.cfg.model_dump_json(exclude={"adapt", "har", "synthesis"})
        shared.setdefault(rest, []).append(one)
    for group in shared.values():
        fields = [one.lab.cfg.adapt.model_dump() for one in group]
        for one, adapted in zip(group, group[0].lab.each("adapt", fields), strict=True):
            one.adapted = adapted
    drawing: dict[str, list[Side]] = {}
    for one in sides.values():
        drawing.setdefault(one.lab.cfg.model_dump_json(exclude={"adapt", "har"}), []).append(one)
    for group in drawing.values():
        lab = group[0].lab
        clips = lab.each("synthesize", [{"adapted": one.adapted} for one in group])
        for one, made in zip(group, clips, strict=True):
            one.synthetic = lab.load_clips(made)
    corrected = side()
    for one in sides.values():
        score(one, wanted[id(one)], corrected.lab.referee)

    rows = []
    for name, (theirs, ours) in pairs.items():
        values = ["reference", "corrected"]
        if name != "all":
            values = [values_of(one.lab.cfg, SWITCHES[name]) for one in (theirs, ours)]
        for measure in ROWS[name].measures:
            difference, low, high, n = compare(theirs.scores[measure], ours.scores[measure], base.seed)
            rows.append({
                "switch": name, "reference": values[0], "corrected": values[1], "what it changes": ROWS[name].changes,
                "measure": measure, "difference": difference, "low": low, "high": high, "n": n,
            })  # fmt: skip
            sys.stdout.write(f"{name:20} {measure:32} {difference:+.3f} [{low:+.3f}, {high:+.3f}] n {n}\n")
    summary = {}
    for label, one in zip(("reference", "corrected"), pairs["all"], strict=True):
        summary |= {f"{label}: {m}": float(np.nanmean(one.scores[m])) for m in ROWS["all"].measures}
    summary |= {"comparisons": len(rows), "intervals without zero": sum(r["low"] > 0 or r["high"] < 0 for r in rows)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {
        "name": "reference", "made": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment(),
        "settings": {"quick": options.quick, "steps": steps, "seeds": options.seeds, "experiment": base.record()},
        "rows": rows, "summary": summary,
    })  # fmt: skip
    sys.stdout.write(f"written: {options.out}\n")


if __name__ == "__main__":
    main()
