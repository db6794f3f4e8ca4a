"""How good is the shipped prior? Its samples against held-out motion with the same captions and lengths.

    python benchmarks/prior.py [--quick] [--earlier FOLDER ...] [--out FILE]

The prompts are captions of performances that the prior never saw, by other subjects, in sentences that do not occur in
its training set; the performances themselves are what the samples are compared with, and what the measures are tried on
(columns `held-out`). The judge is a classifier of source motion (`Lab.source_referee`); no target clip is involved.

Bars, at guidance 2.5 and all 50 ancestral steps:

* recognised: share of samples of one action in which the judge sees that action;
* speed, diversity, foot slip: mean joint speed, mean distance of two samples of one action in the features of the judge
  and slip of grounded feet, as ratios to the held-out motion;
* bones: mean over bones and clips of the largest relative change of a bone's length, as drawn; consistent features
  (`motion.reconcile`), which all else is measured on, have constant bones by construction;
* order: share of samples of two different actions in which windows of 40 frames are seen as both of them, the first
  earlier on average;
* side: share of samples of one-sided actions whose caption names one side in which the limb of that side does most.

The fast sampler of the scale `embedded` and other strengths of guidance stand beside them. So do the errors of a single
step of denoising by level of noise, with the clip's own sentence and with another's: what the sentence adds, and where.
`--earlier` names the priors after earlier stages of training (see the manifest), first to last: the same measures by
the fast sampler over the stages, and the errors by level of noise after the first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import joblib
import numpy as np
import torch
from scipy.spatial.distance import pdist

from kinemic import metrics, motion, train
from kinemic.artefacts import RECORD, Artefact, environment, write_json
from kinemic.config import Experiment
from kinemic.data import Clip, collate, entries
from kinemic.diffusion import Diffusion, masked_mse
from kinemic.pipeline import Lab, shown
from kinemic.world import make_world

GUIDANCE = 2.5
LONGEST = 100  # frames of a prompt; longer ones cost time and ask for nothing new
WINDOW, STRIDE = 40, 8  # frames of the windows that give frame labels
# One-sided actions: the limb (left, right joint) that does most is the one asked for.
FEET, WRISTS = (10, 11), (20, 21)
SIDED = {"front kick": FEET, "side kick": FEET, "punch": WRISTS, "throw": WRISTS, "chop": WRISTS, "point": WRISTS,
         "salute": WRISTS, "hand waving": WRISTS}  # fmt: skip


def prompts(lab: Lab, performances: int, per_primitive: int, pairs: int) -> tuple[dict[str, list[Clip]], list[Clip]]:
    """Held-out entries, each with one caption: of single actions by name, and of two different actions in a row."""
    known = {c.text for clip in lab.data.source for c in clip.captions}
    source = make_world(performances, 1, 1, seed=lab.cfg.world.seed + 1).source
    single, double = {name: [] for name in lab.source_referee.settings["classes"]}, []
    for clip in entries(source):
        fresh = [c for c in clip.captions if c.text not in known]
        actions = shown(clip)
        if not fresh or len(clip) > LONGEST * len(actions):
            continue
        clip = Clip(clip.name, clip.features, fresh[:1], segments=clip.segments)
        if len(set(actions)) == 1 and actions[0] in single:
            single[actions[0]].append(clip)
        elif len(actions) == 2 and clip.name[1] == "_":  # captions of whole clips may leave an action out
            double.append(clip)
    fewest = min(single, key=lambda name: len(single[name]))
    if len(single[fewest]) < per_primitive or len(double) < pairs:
        raise ValueError(f"{len(single[fewest])} prompts of {fewest} and {len(double)} of two actions, wanted "
                         f"{per_primitive} and {pairs}: make more performances")  # fmt: skip
    return {name: clips[:per_primitive] for name, clips in single.items()}, double[:pairs]


@lru_cache(maxsize=1)
def generator(folder: Path):
    """The prior, once per process."""
    return train.load_model(folder).eval()


def drawn(folder: Path, steps_of_prior: int, normalizer, lengths, text, how: tuple[str, int, float], seed: int):
    """One batch: consistent features of each clip, and how much its bones change as drawn."""
    sampler, steps, scale = how
    x = Diffusion(steps_of_prior).sample(
        generator(folder), torch.from_numpy(lengths), motion.NUM_FEATURES, text=torch.from_numpy(text),
        guidance_scale=scale, sampler=sampler, steps=steps, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    raw = [one[:n].astype(np.float32) for one, n in zip(normalizer.denormalize(x.numpy()), lengths, strict=True)]
    return [(motion.reconcile(one), float(metrics.bone_length_drift(motion.decode(one)).mean())) for one in raw]


def samples(lab: Lab, folder: Path, processes, clips: list[Clip], how: tuple[str, int, float], batch: int = 32):
    """A sample of the prior in `folder` for each prompt, of the length of its clip, and the change of its bones."""
    text = lab.text([clip.captions[0].text for clip in clips], "condition")
    lengths = np.array([len(clip) for clip in clips])
    rows = np.array_split(np.argsort(-lengths, kind="stable"), max(1, len(clips) // batch))
    jobs = [processes.submit(drawn, folder, lab.cfg.diffusion.num_timesteps, lab.data.normalizer, lengths[r],
                             text[r], how, seed) for seed, r in enumerate(rows)]  # fmt: skip
    out = [None] * len(clips)
    for r, job in zip(rows, jobs, strict=True):
        for i, (features, bones) in zip(r, job.result(), strict=True):
            out[i] = Clip(f"drawn_{i:06d}", features), bones
    return [clip for clip, _ in out], np.array([bones for _, bones in out])


@torch.no_grad()
def by_noise(lab: Lab, model, clips: list[Clip], levels: range, batch: int = 32) -> list[dict[str, float]]:
    """Error of the estimated clean motion at each step, told the truth and told what another clip shows."""
    text = torch.from_numpy(lab.text([clip.captions[0].text for clip in clips], "condition"))
    # Clips of an action stand together, so half-way round the list it is another.
    told = {"own sentence": text, "another's sentence": text.roll(len(text) // 2, 0)}
    order = sorted(range(len(clips)), key=lambda i: len(clips[i]))
    found = []
    for t in levels:
        total = dict.fromkeys(told, 0.0)
        for start in range(0, len(clips), batch):
            rows = order[start : start + batch]
            real = collate([lab.data.normalizer.normalize(clips[i].features) for i in rows], [""] * len(rows))
            noise = torch.randn(real.x.shape, generator=torch.Generator().manual_seed(start))
            step = torch.full((len(rows),), t)
            x_t = lab.diffusion.q_sample(real.x, step, noise)
            for name, words in told.items():
                estimate = model(x_t, step, mask=real.mask, text=words[rows])
                total[name] += float(masked_mse(estimate, real.x, real.mask).sum())
        found.append({"step": t, **{name: value / len(clips) for name, value in total.items()}})
    return found


def kinematics(clips: list[Clip]) -> dict[str, float]:
    """Means over clips: pelvis-centred joint speed and slip of grounded feet, m/s."""
    return {"speed": float(np.mean([metrics.joint_speed(c.joints - c.joints[:, :1]).mean() for c in clips])),
            "slip": float(np.nanmean([metrics.foot_slip(c.joints) for c in clips]))}  # fmt: skip


def in_order(judge, clips: list[Clip], prompts_: list[Clip]) -> float:
    """Share of clips whose windows show both actions of the prompt, the first earlier on average."""
    hits = []
    for clip, prompt in zip(clips, prompts_, strict=True):
        starts = np.arange(0, max(len(clip) - WINDOW, 0) + 1, STRIDE)
        seen = judge.predict([clip.crop(int(s), min(int(s) + WINDOW, len(clip))).joints for s in starts]).argmax(1)
        first, second = (starts[seen == judge.settings["classes"].index(name)] for name in shown(prompt))
        hits.append(len(first) and len(second) and first.mean() < second.mean())
    return float(np.mean(hits))


def on_side(clips: list[Clip], prompts_: list[Clip], name: str) -> list[bool]:
    """For each prompt that names one side: does that limb do most? Feet by height, hands by the way they go."""
    hits = []
    for clip, prompt in zip(clips, prompts_, strict=True):
        asked = set(re.findall(r"\b(?:left|right)\b", prompt.captions[0].text))
        if len(asked) == 1:
            limbs = (clip.joints - clip.joints[:, :1])[:, SIDED[name]]
            path = np.linalg.norm(np.diff(limbs, axis=0), axis=-1).sum(0)
            did = limbs[..., 1].max(0) if SIDED[name] == FEET else path
            hits.append(bool((did[0] > did[1]) == (asked == {"left"})))
    return hits


def spread(judge, clips: list[Clip]) -> float:
    """Mean distance of two clips in the features of the judge."""
    return float(pdist(judge.embed([clip.joints for clip in clips])).mean())


def judged(judge, made: dict[str, list[Clip]], real: dict[str, list[Clip]]) -> dict[str, dict]:
    """Action -> measures of its samples beside those of the held-out motion."""
    classes, found = judge.settings["classes"], {}
    for name, clips in made.items():
        other = real[name]
        seen, theirs = (judge.predict([c.joints for c in x]).argmax(1) for x in (clips, other))
        wrong = seen[seen != classes.index(name)]
        own, base = kinematics(clips), kinematics(other)
        found[name] = {
            "clips": len(clips), "recognised": float((seen == classes.index(name)).mean()),
            "recognised, held-out": float((theirs == classes.index(name)).mean()),
            "speed": own["speed"], "speed, held-out": base["speed"],
            "slip": own["slip"], "slip, held-out": base["slip"],
            "diversity": spread(judge, clips), "diversity, held-out": spread(judge, other),
            "most often taken for": classes[np.bincount(wrong).argmax()] if len(wrong) else "",
        }  # fmt: skip
        if name in SIDED:
            sides = on_side(clips, other, name)
            if sides:
                found[name] |= {"sides asked": len(sides), "side": float(np.mean(sides)),
                                "side, held-out": float(np.mean(on_side(other, other, name)))}  # fmt: skip
    return found


def summarised(found: dict[str, dict]) -> dict[str, float]:
    """The measures over all actions; a ratio of means for speed and slip, a mean of ratios for diversity."""
    def mean(key):
        return float(np.mean([row[key] for row in found.values()]))

    ratios = [row["diversity"] / row["diversity, held-out"] for row in found.values()]
    out = {
        "recognised": mean("recognised"), "speed ratio": mean("speed") / mean("speed, held-out"),
        "diversity ratio": float(np.mean(ratios)), "slip ratio": mean("slip") / mean("slip, held-out"),
        "actions with diversity within 0.15": float(np.mean([abs(r - 1) <= 0.15 for r in ratios])),
    }  # fmt: skip
    asked = [row for row in found.values() if "side" in row]
    if asked:
        weights = [row["sides asked"] for row in asked]
        for key in ("side", "side, held-out"):
            out[key] = float(np.average([row[key] for row in asked], weights=weights))
    return out


def measured(
    lab: Lab, folder: Path, processes, how: tuple[str, int, float], real: dict[str, list[Clip]], double: list[Clip]
) -> tuple[dict[str, dict], dict[str, float]]:
    """Measures by action and over all, of samples of the prior in `folder`; order only where pairs are given."""
    made, bones = samples(lab, folder, processes, [clip for clips in real.values() for clip in clips], how)
    ends = np.cumsum([len(clips) for clips in real.values()])[:-1]
    parts = [made[i:j] for i, j in zip([0, *ends], [*ends, len(made)], strict=True)]
    found = judged(lab.source_referee, dict(zip(real, parts, strict=True)), real)
    total = {"clips": len(made)} | summarised(found) | {"bones": float(bones.mean())}
    if double:
        total["order"] = in_order(lab.source_referee, samples(lab, folder, processes, double, how)[0], double)
    brief = {k: round(v, 3) for k, v in total.items()}
    sys.stdout.write(f"{folder.name} {how}: {brief}\n")
    sys.stdout.flush()
    return found, total


def trained(folder: Path) -> list[int]:
    """Steps of each stage of a prior's training, by its manifest."""
    stage, steps = Artefact(folder, "").manifest, []
    while stage:
        steps.insert(0, stage["settings"]["pretrain"]["steps"])
        stage = stage.get("start")
    return steps


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few prompts and steps: does it run?")
    parser.add_argument("--per-primitive", type=int, default=40, help="samples of each action")
    parser.add_argument("--pairs", type=int, default=100, help="samples of two actions")
    parser.add_argument("--performances", type=int, default=1000, help="held-out performances to take prompts from")
    parser.add_argument("--earlier", type=Path, nargs="+", default=[], help="folders of the prior after earlier stages")
    parser.add_argument("--scale", default="embedded", help="scale whose prior and world are measured")
    parser.add_argument("--out", type=Path, default=RECORD / "benchmarks" / "prior.json")
    given = parser.parse_args(argv)
    if given.quick:
        given.per_primitive, given.pairs, given.performances = 2, 4, 150
    started = time.perf_counter()

    lab = Lab(Experiment.load(given.scale))
    cfg, judge = lab.cfg.diffusion, lab.source_referee
    single, double = prompts(lab, given.performances, given.per_primitive, given.pairs)
    full = ("ddpm", 5 if given.quick else cfg.num_timesteps, GUIDANCE)
    fast = (cfg.sampler, cfg.sampling_steps or cfg.num_timesteps, GUIDANCE)
    others = [(*fast[:2], scale) for scale in ((1.0,) if given.quick else (1.0, 1.5, 4.0, 6.0))]
    some = {name: clips[: max(2, given.per_primitive // 4)] for name, clips in single.items()}
    rows, summary, prior = [], {}, lab.prior.folder
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(joblib.cpu_count(), fresh, torch.set_num_threads, (1,)) as processes:
        for how in (full, fast, *others):
            whole = how in (full, fast)
            found, total = measured(lab, prior, processes, how, single if whole else some, double if whole else [])
            setting = {"sampler": how[0], "steps": how[1], "guidance": how[2]}
            rows.append({"kind": "setting", **setting, **total})
            if how == full:
                rows += [{"kind": "action", "action": name, **setting, **row} for name, row in found.items()]
                ceiling = float(np.mean([row["recognised, held-out"] for row in found.values()]))
                summary = {**total, "recognised, held-out": ceiling, "order, held-out": in_order(judge, double, double)}
                summary["worst action"] = min(found, key=lambda name: found[name]["recognised"])
            if how == fast:
                for folder in (*given.earlier, prior):
                    after = total if folder == prior else measured(lab, folder, processes, how, single, double)[1]
                    stages = trained(folder)
                    rows.append({"kind": "stage", "stage": len(stages), "trained": sum(stages), **setting, **after})
    levels = range(0, cfg.num_timesteps, 24 if given.quick else 1)
    told = {"one action": [clip for clips in single.values() for clip in clips[:4]], "two actions": double}
    first = {"first stage": given.earlier[0]} if given.earlier else {}
    for stage, folder in {**first, "shipped": prior}.items():
        for prompt, clips in told.items():
            labels = {"kind": "noise", "prior": stage, "prompts": prompt, "clips": len(clips)}
            rows += [labels | row for row in by_noise(lab, generator(folder), clips, levels)]
    write_json(given.out, {
        "name": "prior", "made": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment(),
        "settings": {"scale": given.scale, "quick": given.quick, "samples of each action": given.per_primitive,
                     "samples of two actions": given.pairs, "held-out performances": given.performances,
                     "longest prompt, frames": LONGEST, "threads": 1},
        "rows": rows, "summary": summary | {"seconds": round(time.perf_counter() - started, 1)},
    })  # fmt: skip
    sys.stdout.write(f"{given.out}: {summary}\n")


if __name__ == "__main__":
    main()
