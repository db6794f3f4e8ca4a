"""How hard is the embedded world? Accuracy from real shots alone, precision of retrieval, and the gap of the domains.

The classifier and its training are those of the scale `embedded`. A draw is one few-shot set with one classifier; the
rows `full` train on the whole pool, a classifier seed per draw, for `--full-updates` updates: more clips need more.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from kinemic import artefacts, data, metrics, motion
from kinemic.config import Experiment
from kinemic.pipeline import Lab

OUT = artefacts.RECORD / "benchmarks" / "difficulty.json"


def gap(clips):
    """Means over clips of the figures by which estimated and captured motion differ."""
    figures = []
    for clip in clips:
        joints = clip.joints
        centred = joints - joints[:, :1]
        figures.append((
            metrics.joint_speed(centred).mean(), metrics.jerk(centred).mean(), metrics.high_frequency_share(centred),
            metrics.foot_slip(joints), np.linalg.norm(joints[-1, 0] - joints[0, 0]), len(clip) / motion.FPS,
        ))  # fmt: skip
    names = ("speed, m/s", "jerk, m/s^3", "share above 5 Hz", "foot slip, m/s", "root drift, m", "seconds")
    return dict(zip(names, np.nanmean(figures, axis=0).round(4).tolist(), strict=True))


def accuracies(cfg, shots, draws):
    """Rows of top-1 accuracy for each number of shots (0 is the whole pool, with a classifier seed per draw)."""
    lab, rows = Lab(cfg, progress=False), []
    for k in shots:
        if k:
            rngs = [np.random.default_rng([cfg.seed, draw]) for draw in range(draws)]
            sets = (lab.training_set(data.few_shot(lab.data.pool, k, rng, lab.data.classes)) for rng in rngs)
            predictions = (lab.evaluate(training)["predictions"][0] for training in sets)
        else:
            every = Lab(cfg.override(har={"seeds": draws}), progress=False)
            predictions = every.evaluate(every.training_set(every.data.pool))["predictions"]
        labels = lab.data.labels(lab.data.test)
        for draw, predicted in enumerate(predictions):
            hits = predicted == labels
            row = {"shots": k or "full", "draw": draw, "updates": cfg.har.updates, "top1": round(float(hits.mean()), 4)}
            row |= {name: round(float(hits[labels == i].mean()), 4) for i, name in enumerate(lab.data.classes)}
            print(f"{row['shots']} shots, draw {draw}, {cfg.har.updates} updates: {row['top1']:.3f}", flush=True)
            rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shots", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--pool", type=int, default=120, help="clips per class of the pool")
    parser.add_argument("--test", type=int, default=80, help="clips per class of the test set")
    parser.add_argument("--source", type=int, default=1200, help="source performances, for retrieval; 0 skips it")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--full-updates", type=int, default=2000, help="updates on the whole pool; 0 skips it")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    parser.add_argument("--quick", action="store_true", help="a small try")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    if given.quick:
        given.shots, given.draws, given.pool, given.test, given.source = [3], 1, 12, 10, 100
        given.updates = given.full_updates = 60
    base = {"pool_clips": given.pool, "test_clips": given.test, "seed": given.seed}
    cfg = Experiment.load("embedded", settings={
        "world": base | {"source_clips": 20}, "har": {"updates": given.updates, "seeds": 1},
    })  # fmt: skip
    rows = accuracies(cfg, given.shots, given.draws)
    if given.full_updates:
        rows += accuracies(cfg.override(har={"updates": given.full_updates}), [0], given.draws)
    summary = {}
    for key in dict.fromkeys(row["shots"] for row in rows):
        values = [row["top1"] for row in rows if row["shots"] == key]
        summary[f"top-1, {key} shots"] = round(float(np.mean(values)), 4)
        summary[f"top-1, {key} shots, standard deviation"] = round(float(np.std(values, ddof=len(values) > 1)), 4)
    if given.source:
        lab = Lab(cfg.override(world={"source_clips": given.source}), progress=False)
        found = metrics.retrieval_precision(lab.retrieve().indices, lab.relevance(), lab.cfg.mining.top_k)
        summary["source entries"], summary["top k"] = len(lab.data.source), lab.cfg.mining.top_k
        summary["precision"] = round(float(found.mean()), 4)
        # a class that the source does not contain counts with precision 0
        summary |= {f"precision, {c}": round(float(p), 4) for c, p in zip(lab.data.classes, found, strict=True)}
        for side, clips in (("source", lab.data.source[:300]), ("target", lab.data.test)):
            summary |= {f"{side}: {name}": value for name, value in gap(clips).items()}
    settings = {name: value for name, value in vars(given).items() if name != "out"}
    for name, value in summary.items():
        print(f"{name}: {value}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    artefacts.write_json(given.out, {
        "name": "difficulty", "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": artefacts.environment(), "settings": settings, "rows": rows, "summary": summary,
    })  # fmt: skip


if __name__ == "__main__":
    main()
