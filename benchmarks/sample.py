"""Clips per second against quality: samplers and numbers of steps on the shipped prior of the embedded world.

    python benchmarks/sample.py [--quick] [--out FILE]

The prior draws clips from class captions, with the lengths of the shots, as `Lab.synthesize` does.

Speed. The baseline samples as the reference implementation does: 50 ancestral steps, a pass with and one without the
condition, every clip 196 frames long whatever was asked for, all of them computed (the denoiser's packing is off).
Against it stand the same steps in one pass, and the package's sampling (`Diffusion.sample`: one pass, clips cut to
their length, batches of similar length) for each sampler and number of steps. Runs alternate, the median counts. The
work after the sampling (consistent features, decoding) is the same for all, is not in these times, and is reported by
itself.

Quality. Each setting draws the whole set several times with other noise and other lengths (replications); a referee
trained on real clips gives the recognised share, the Frechet distance to real test clips and the diversity. The
replication noise of a measure is its standard deviation over the replications of the baseline. A setting loses
`loss / noise` at its worst measure: how far its mean is worse than the baseline's, in units of that noise; a diversity
is worse when it is farther from that of real clips. The quality loss is below the replication noise where this is at
most 1. `diversity moved / noise` is the stricter number, the change of the diversity in any direction.

That cutting and joining change nothing but speed is checked here too: from the same noise both ways give the same
motions.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import joblib
import numpy as np
import torch
from tqdm.auto import tqdm

from kinemic import motion
from kinemic.artefacts import RECORD, environment, write_json
from kinemic.config import Experiment
from kinemic.diffusion import SAMPLERS
from kinemic.pipeline import Lab

FRAMES = 196  # what the reference pads to
MEASURES = ("recognised", "frechet", "diversity")


def padded(model, lengths, text, noise, scheduler, scale: float, joined: bool, generator=None):
    """Guided sampling of clips that are all `FRAMES` long, each estimate from two passes or from one.

    Args:
        noise: (B, FRAMES, D) to start from.
        joined: both halves of the guidance in one batch.
        generator: of the sampler's own noise, where it takes any.

    Returns:
        (B, FRAMES, D), zero beyond each clip's length.
    """
    x, B = noise, len(noise)
    mask = torch.arange(FRAMES)[None] < lengths[:, None]
    extra = {} if generator is None else {"generator": generator}
    with torch.no_grad():
        for t in scheduler.timesteps:
            when = torch.full((B,), int(t))
            if joined:
                keep = torch.arange(2 * B) < B
                twice = [torch.cat([a, a]) for a in (x, when, mask, text)]
                estimates = model(*twice[:2], mask=twice[2], text=twice[3], keep_text=keep).chunk(2)
            else:
                estimates = [model(x, when, mask=mask, text=text, keep_text=torch.full((B,), k)) for k in (True, False)]
            conditional, unconditional = estimates
            x = scheduler.step(unconditional + scale * (conditional - unconditional), t, x, **extra).prev_sample
    return x * mask[..., None]


@lru_cache(maxsize=1)
def laboratory() -> Lab:
    """One per process: the world is read once."""
    return Lab(Experiment.load("embedded"), progress=False)


def replication(sampler: str, steps: int, seed: int, per_class: int) -> dict[str, float]:
    """Quality of one set of clips."""
    lab = laboratory()
    changes = {"diffusion": {"sampler": sampler, "sampling_steps": steps},
               "synthesis": {"seed": seed, "per_class": per_class}}  # fmt: skip
    other = Lab(lab.cfg.override(**changes), lab.store, progress=False)
    other.data, other.text = lab.data, lab.text
    found = lab.judge(lab.training_set(other.load_clips(other.synthesize(None)), synthetic=True))
    return {name: found[name] for name in MEASURES}


def qualities(settings: list[tuple[str, int]], seeds: int, per_class: int) -> dict[tuple[str, int], dict[str, list]]:
    """(sampler, steps) -> measure -> one number per replication; computed side by side, a core each."""
    lab = laboratory()
    _ = (lab.prior, lab.referee, lab.text([lab.data.captions[c] for c in lab.data.classes], "condition"))
    calls = [(*setting, seed, per_class) for setting in settings for seed in range(seeds)]
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(joblib.cpu_count(), fresh, torch.set_num_threads, (1,)) as pool:
        done = list(tqdm(pool.map(replication, *zip(*calls, strict=True)), desc="quality", total=len(calls)))
    found = {setting: {name: [] for name in MEASURES} for setting in settings}
    for (*setting, _, _), result in zip(calls, done, strict=True):
        for name in MEASURES:
            found[tuple(setting)][name].append(result[name])
    return found


def timed(work: dict[object, tuple[int, Callable[[], object]]], repetitions: int) -> dict[object, float]:
    """Median clips per second of each piece of work (clips, call); the pieces take turns."""
    seconds = {name: [] for name in work}
    for _ in tqdm(range(repetitions), desc="speed"):
        for name, (_, call) in work.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: clips / statistics.median(seconds[name]) for name, (clips, _) in work.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few clips, steps and repetitions: does it run?")
    parser.add_argument("--out", type=Path, default=RECORD / "benchmarks" / "sample.json")
    options = parser.parse_args(argv)
    counts, seeds, per_class, batch, repetitions = ((4, 2), 2, 4, 8, 1) if options.quick else (
        (20, 10, 8, 5), 5, 24, 64, 3)  # fmt: skip

    lab = laboratory()
    cfg = lab.cfg.diffusion
    full = cfg.num_timesteps
    settings = [("ddpm", full)] + [(sampler, steps) for sampler in SAMPLERS for steps in counts]
    model, scale = lab.prior_model.eval(), cfg.guidance_scale
    rng = np.random.default_rng(0)
    seen = np.array([len(clip) for clip in lab.shots(0)])
    lengths = torch.from_numpy(np.sort(rng.choice(seen, 2 * batch)))  # two batches of clips of similar length
    captions = lab.text([lab.data.captions[c] for c in lab.data.classes], "condition")
    text = torch.from_numpy(captions[rng.integers(len(captions), size=2 * batch)])
    noise = torch.randn(batch, FRAMES, motion.NUM_FEATURES, generator=torch.Generator().manual_seed(0))

    # The package's denoiser leaves out padding wherever it stands; the reference computes it.
    unpacked = copy.copy(model)
    unpacked.pack = False

    def as_reference(joined: bool):
        generator = torch.Generator().manual_seed(1)
        scheduler = lab.diffusion.scheduler("ddpm")
        return padded(unpacked, lengths[::2], text[::2], noise, scheduler, scale, joined, generator)

    def as_package(sampler: str, steps: int):
        for rows in (slice(0, batch), slice(batch, None)):
            lab.diffusion.sample(model, lengths[rows], motion.NUM_FEATURES, text=text[rows], guidance_scale=scale,
                                 sampler=sampler, steps=steps, generator=torch.Generator().manual_seed(1))  # fmt: skip

    few, ten = slice(0, 8), lab.diffusion.scheduler("ddim", 10)  # without noise of its own
    cut = lab.diffusion.sample(model, lengths[few], motion.NUM_FEATURES, text=text[few], guidance_scale=scale,
                               sampler="ddim", steps=10, generator=torch.Generator().manual_seed(2))  # fmt: skip
    start = torch.randn(*cut.shape, generator=torch.Generator().manual_seed(2))  # what the line above started from
    start = torch.cat([start, noise[few, start.shape[1] :]], dim=1)
    whole = padded(unpacked, lengths[few], text[few], start, ten, scale, joined=False)
    difference = float((whole[:, : cut.shape[1]] - cut).abs().max() / cut.std())

    found = qualities(settings, seeds, per_class)
    as_package("ddim", 2)  # warm-up, and the slow import of the schedulers
    work = {"two passes, padded": (batch, lambda: as_reference(False)),
            "one pass, padded": (batch, lambda: as_reference(True))}  # fmt: skip
    work |= {setting: (2 * batch, lambda setting=setting: as_package(*setting)) for setting in settings}
    speed = timed(work, repetitions)

    clips = lab.data.test[:16]
    started = time.perf_counter()
    for clip in clips:
        motion.decode(motion.reconcile(clip.features))
    after = (time.perf_counter() - started) / len(clips)

    base, real = found["ddpm", full], lab.judge(lab.training_set(lab.data.test), lab.data.pool)
    noise_of = {name: statistics.stdev(base[name]) for name in MEASURES}

    def row(label: str, steps: int, key, quality: dict[str, list]) -> dict:
        spread = {f"{name} sd": statistics.stdev(quality[name]) for name in MEASURES}
        mean = {name: statistics.fmean(quality[name]) for name in MEASURES}
        was = {name: statistics.fmean(base[name]) for name in MEASURES}
        worse = {"recognised": was["recognised"] - mean["recognised"], "frechet": mean["frechet"] - was["frechet"],
                 "diversity": abs(mean["diversity"] - real["diversity"]) - abs(was["diversity"] - real["diversity"])}
        return {
            "sampler": label, "steps": steps, "clips per second": speed[key],
            "speed-up": speed[key] / speed["two passes, padded"],
            **mean, **spread,
            "loss / noise": max(worse[name] / noise_of[name] for name in MEASURES),
            "diversity moved / noise": abs(mean["diversity"] - was["diversity"]) / noise_of["diversity"],
        }  # fmt: skip

    rows = [row("ddpm, two passes, padded", full, "two passes, padded", base),
            row("ddpm, one pass, padded", full, "one pass, padded", base)]  # fmt: skip
    rows += [row(*setting, setting, found[setting]) for setting in settings]
    kept = [r for r in rows if r["loss / noise"] <= 1]
    best = max(kept, key=lambda r: r["speed-up"])
    default = next((r for r in rows if (r["sampler"], r["steps"]) == (cfg.sampler, cfg.sampling_steps)), None)
    summary = {
        "fastest within noise": f"{best['sampler']}, {best['steps']} steps",
        "speed-up within noise": best["speed-up"],
        "diversity moved / noise, of the fastest": best["diversity moved / noise"],
        "speed-up from one pass": speed["one pass, padded"] / speed["two passes, padded"],
        "speed-up from own length": speed["ddpm", full] / speed["one pass, padded"],
        "speed-up from fewer steps": best["speed-up"] * speed["two passes, padded"] / speed["ddpm", full],
        **({"speed-up of the default": default["speed-up"]} if default else {}),
        **{f"replication noise of {name}": noise_of[name] for name in MEASURES},
        "largest difference of the two ways, in sd": difference,
        "milliseconds per clip after sampling": 1000 * after,
        "mean frames": float(lengths.float().mean()),
    }
    summary |= {f"{name} of real clips": real[name] for name in ("recognised", "diversity")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {
        "name": "sample", "made": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment(),
        "settings": {"scale": "embedded", "prior": "shipped", "guidance": scale, "replications": seeds,
                     "clips per replication": per_class * len(lab.data.classes), "batch": batch,
                     "repetitions": repetitions, "threads": torch.get_num_threads(), "quick": options.quick},
        "rows": rows, "summary": summary,
    })  # fmt: skip
    sys.stdout.write(f"{options.out}: {summary}\n")


if __name__ == "__main__":
    main()
