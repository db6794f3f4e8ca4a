"""Seconds and memory of one update of the adaptation against a step shaped like the reference implementation's.

The reference-shaped step passes target and window one after the other, pads everything to 196 frames, encodes captions
with a text tower of ViT-B/32's size in the loop (the prior's once, the target's twice), and fetches the norm of every
parameter, frozen ones too, one by one. Both steps get the same weights, noise, diffusion steps and dropped conditions.
First their loss terms and gradients are compared, without dropout, over two draws so that the second sees a filled
bank, in single precision and in double, which tells rounding from a difference in the mathematics. Then whole updates
are timed with the dropout of training, variants in turn, every time in a process that holds nothing else, as training
does: beside the memory of ten others the same update takes a tenth longer. Each row takes one saving more than the row
above.

Memory is the largest resident size of that process after two updates (tracemalloc does not see PyTorch's allocations),
and what of it the updates added. FLOPs are counted by PyTorch with attention in its plain form, the one that the
counter knows; the recurrent network is counted too.

    python benchmarks/train_step.py [--quick] [--threads 1 2] [--repetitions 5] [--bf16] [--compile]
                                   [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from kinemic import denoiser, motion, train
from kinemic._torchvision import ensure_torchvision
from kinemic.artefacts import RECORD, environment, write_json
from kinemic.data import Batch
from kinemic.denoiser import Denoiser, EncoderLayer
from kinemic.diffusion import Diffusion, masked_mse
from kinemic.mining import best_window, soft_nearest_neighbour_loss, window_weight

FRAMES = 196  # to which the reference pads
STEPS = 10_000  # updates of the paper
PAPER = dict(shots=30, sources=60, dim=512, layers=8, heads=4, ff=1024, rank=16, mic=512, text=512, tower=12)
QUICK = dict(shots=6, sources=8, dim=32, layers=2, heads=2, ff=64, rank=4, mic=32, text=64, tower=2)
EFFECTIVE = 10.0  # TFLOP/s, a modest share of a recent data-centre GPU's float32 with TF32 products
SAVINGS = (
    "cached text", "length of the longest", "joined passes", "no logging of single parameters", "no padding",
    "recurrence of our own", "dropout from fewer draws",
)  # fmt: skip
VARIANTS = ("reference", *(f"+ {saving}" for saving in SAVINGS), "ours")


class Setting:
    """Synthetic clips and captions at a size, the text tower, and adaptations with equal weights."""

    def __init__(self, size: dict[str, int], dropout: float):
        ensure_torchvision()
        from open_clip.model import QuickGELU
        from open_clip.transformer import TextTransformer

        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        heads = max(1, size["text"] // 64)
        self.tower = TextTransformer(
            width=size["text"], heads=heads, layers=size["tower"], output_dim=size["text"], act_layer=QuickGELU
        )
        self.tower.eval().requires_grad_(False)
        self.size, self.dropout = size, dropout
        # target clips 16 to 64 frames, source clips 36 to 196, skewed to the means of the data (39 and 145)
        shots, sources = (
            np.rint(low + (high - low) * beta.ppf((rng.permutation(n) + 0.5) / n, *shape)).astype(int)
            for low, high, n, shape in ((16, 64, size["shots"], (1.5, 1.5)), (36, 196, size["sources"], (1.7, 0.7)))
        )
        self.tokens, captions = {}, {}
        for side, count in (("target", 3), ("source", size["sources"])):
            ids = torch.zeros(count, 77, dtype=torch.long)
            for row, words in enumerate(rng.integers(5, 20, count)):
                ids[row, :words] = torch.from_numpy(rng.integers(1, 49_000, words))
                ids[row, words] = 49_407
            with torch.inference_mode():
                captions[side] = self.tower(ids).numpy().copy()
            self.tokens[side] = ids
        actions = np.arange(size["shots"]) % 3
        self.tokens["target"] = self.tokens["target"][actions]
        own = motion.Normalizer(np.zeros(motion.NUM_FEATURES), np.ones(motion.NUM_FEATURES))

        def stream(lengths, text, labels):
            clips = [rng.normal(size=(n, motion.NUM_FEATURES)).astype(np.float32) for n in lengths]
            return train.Stream(clips, [t[None] for t in text], labels, own)

        self.shots = stream(shots, captions["target"][actions], actions)
        self.source = stream(sources, captions["source"], np.full(len(sources), -1))
        self.lists = [[np.arange(k, len(sources), 3)] for k in actions]

    def adaptation(self, **options) -> train.Adaptation:
        """Always the same weights, adapters and draws."""
        s = self.size
        torch.manual_seed(1)
        prior = Denoiser(motion.NUM_FEATURES, s["text"], dim=s["dim"], layers=s["layers"], heads=s["heads"], ff=s["ff"])
        made = train.Adaptation(
            prior, Diffusion(50), self.shots, self.source, self.lists, num_actions=3, rank=s["rank"],
            alpha=2 * s["rank"], mic_dim=s["mic"], lora_dropout=0.1, **options,
        )  # fmt: skip
        with torch.no_grad():  # adapters start as zero, which would leave half of their gradients zero
            for name, parameter in made.student.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        set_dropout(made.student, self.dropout)
        return made


def set_dropout(model: nn.Module, probability: float) -> None:
    for module in model.modules():
        if isinstance(module, Denoiser | EncoderLayer):
            module.dropout = probability
        elif isinstance(module, nn.Dropout):
            module.p = probability


class Reference:
    """The reference-shaped step, from the functions of the package; every saving can be switched on by itself."""

    def __init__(self, setting: Setting, adaptation: train.Adaptation, saved: int):
        self.setting, self.adaptation = setting, adaptation
        self.cached, self.cropped, self.joined, self.quiet, packed, own, self.few = (
            i < saved for i in range(len(SAVINGS))
        )
        adaptation.student.pack = adaptation.teacher.pack = packed  # of the transformer: tokens without padding
        if not own:  # of the GRU: PyTorch's packed sequences, as in the reference
            adaptation.mic._own = adaptation.mic._packed
        self.other_tower = copy.deepcopy(setting.tower)  # each of the two models has its own

    def losses(self, draw: train.Draw, step: int = 0) -> dict[str, Tensor]:
        with patch.object(denoiser, "dropout", denoiser.dropout if self.few else F.dropout):
            return self.terms(draw)

    def terms(self, draw: train.Draw) -> dict[str, Tensor]:
        a = self.adaptation
        g, s, t, mic, schedule = draw.target, draw.source, draw.t, a.mic, a.ours
        noise = draw.noise
        if not self.cropped:
            g, s, noise = padded(g), padded(s), F.pad(noise, (0, 0, 0, FRAMES - noise.shape[1]))
        width = g.x.shape[1]
        with torch.no_grad():
            text = draw.source_text if self.cached else self.setting.tower(self.setting.tokens["source"][draw.partners])
            text = text.to(noise.dtype)
            _, latent = a.teacher(
                schedule.q_sample(s.x, t, noise[:, : s.x.shape[1]]), t, mask=s.mask, text=text,
                keep_text=draw.keep_source, return_latent=True,
            )  # fmt: skip
        z_s, attention = mic(latent, s.lengths)
        lengths = torch.minimum(s.lengths, g.lengths)
        start = best_window(attention, s.lengths, lengths)
        x_w, noise_w = torch.zeros_like(g.x), torch.zeros_like(g.x)
        for row, (first, n) in enumerate(zip(start.tolist(), lengths.tolist(), strict=True)):
            clip, begin = self.setting.source.features[draw.partners[row]], draw.crop[row] + first
            x_w[row, :n] = torch.from_numpy(motion.recut(clip, int(begin), n))
            noise_w[row, :n] = noise[row, first : first + n]
        mask_w = torch.arange(width)[None] < lengths[:, None]
        passes = [
            (schedule.q_sample(g.x, t, noise[:, :width]), g.mask, *draw.keep),
            (schedule.q_sample(x_w, t, noise_w), mask_w, *draw.keep_window),
        ]
        if self.joined:
            x, mask, keep_text, keep_action = (torch.cat(p) for p in zip(*passes, strict=True))
            out, latents = self.student(draw, x, t.repeat(2), mask, keep_text, keep_action, 2)
            (estimate_g, estimate_w), (latent_g, latent_w) = out.chunk(2), latents.chunk(2)
        else:
            (estimate_g, latent_g), (estimate_w, latent_w) = (
                self.student(draw, x, t, mask, keep_text, keep_action, 1) for x, mask, keep_text, keep_action in passes
            )
        z_g, _ = mic(latent_g, g.lengths)
        keys, labels = a.memory.with_current(z_s, g.action)
        con = soft_nearest_neighbour_loss(z_g, keys, g.action, labels, mic.log_scale).mean()
        a.memory.push(z_s, g.action)
        with torch.no_grad():
            z_w, _ = mic(latent_w, lengths)
        gamma = window_weight(z_g, z_w)
        rec, error = masked_mse(estimate_g, g.x, g.mask).mean(), masked_mse(estimate_w, x_w, mask_w)
        return {
            "rec": rec, "con": con, "loss": rec + con + (gamma * error).mean(), "win": error.mean(),
            "gamma": gamma.mean(),
        }  # fmt: skip

    def student(self, draw, x, t, mask, keep_text, keep_action, copies):
        text = draw.text
        if not self.cached:
            with torch.no_grad():
                text = self.other_tower(self.setting.tokens["target"][draw.rows]).to(x.dtype)
        return self.adaptation.student(
            x, t, mask=mask, text=text.repeat(copies, 1), keep_text=keep_text, action=draw.target.action.repeat(copies),
            keep_action=keep_action, return_latent=True,
        )  # fmt: skip

    def after_update(self) -> None:
        if self.quiet:
            return
        a = self.adaptation
        for module in (a.student, a.teacher, a.mic, self.setting.tower, self.other_tower):
            for parameter in module.parameters():
                float(parameter.detach().norm())
                if parameter.grad is not None:
                    float(parameter.grad.norm())


class Ours:
    """The step that `train.adapt` takes."""

    def __init__(self, adaptation: train.Adaptation):
        self.adaptation, self.losses = adaptation, adaptation.losses

    def after_update(self) -> None:
        pass


def padded(batch: Batch) -> Batch:
    room = FRAMES - batch.x.shape[1]
    return Batch(F.pad(batch.x, (0, 0, 0, room)), batch.lengths, F.pad(batch.mask, (0, room)), batch.action, [])


def gradients(step, draw: train.Draw) -> tuple[dict[str, float], dict[str, Tensor]]:
    named = step.adaptation.run.named()
    for parameter in named.values():
        parameter.grad = None
    terms = step.losses(draw)
    terms["loss"].backward()
    return {k: float(v.detach()) for k, v in terms.items()}, {
        n: p.grad.clone() for n, p in named.items() if p.grad is not None
    }


def doubled(value):
    """A draw, or a part of one, in double precision."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(map(doubled, value))
    if dataclasses.is_dataclass(value):
        parts = {f.name: doubled(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def deviation(setting: Setting, double: bool) -> dict[str, float]:
    """Largest relative differences over two draws: of a loss term, of a model's gradient, and of one parameter's.

    Gradients below a thousandth of the largest are measured against that, for of some only rounding is left, as of a
    bias that a softmax ignores. In single precision the last is rounding too: the temperature's gradient, for one, is
    a small sum of large terms. In double precision only captions and windows keep the rounding of single.
    """
    made, other = setting.adaptation(), setting.adaptation()
    draws = [made.draw() for _ in range(2)]
    reference, ours = Reference(setting, other, 0), Ours(made)
    kept = contextlib.nullcontext()
    if double:
        draws = list(map(doubled, draws))
        for adaptation in (made, other):
            for model in (adaptation.student, adaptation.teacher, adaptation.mic):
                model.double()
        kept = patch.object(Tensor, "float", lambda x: x)  # what returns from autocast to single stays double
    worst = {"loss term": 0.0, "model's gradient": 0.0, "parameter's gradient": 0.0}

    def note(name: str, value: float) -> None:
        worst[name] = max(worst[name], value)

    for draw in draws:
        with kept:
            (a, ga), (b, gb) = gradients(reference, draw), gradients(ours, draw)
        assert a.keys() == b.keys() and ga.keys() == gb.keys()
        least = 1e-3 * max(float(g.norm()) for g in ga.values())
        for name, value in a.items():
            note("loss term", abs(value - b[name]) / abs(value))
        for name, g in ga.items():
            note("parameter's gradient", float((g - gb[name]).norm()) / max(float(g.norm()), least))
        for model in ("student", "mic"):
            whole, others = (
                torch.cat([v.flatten() for n, v in g.items() if n.startswith(model + ".")]) for g in (ga, gb)
            )
            note("model's gradient", float((whole - others).norm() / whole.norm()))
    return worst


def update(step, draw: train.Draw) -> float:
    started, run = time.perf_counter(), step.adaptation.run
    run.optimizer.zero_grad(set_to_none=True)
    step.losses(draw)["loss"].backward()
    nn.utils.clip_grad_norm_(list(run.named().values()), 1.0)
    run.optimizer.step()
    step.after_update()
    return time.perf_counter() - started


def flops(step, draw: train.Draw) -> int:
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        step.losses(draw)["loss"].backward()
    return counter.get_total_flops()


def variant(setting: Setting, name: str):
    """The step of a row of the table."""
    if name.startswith("ours"):
        made = setting.adaptation(precision="bf16" if name == "ours, bfloat16" else "no")
        for model in (made.student, made.teacher) if name == "ours, compiled" else ():
            model.compile(dynamic=True)
        return Ours(made)
    return Reference(setting, setting.adaptation(), VARIANTS.index(name))


def child(name: str, setting: Setting, turn: int) -> dict[str, float]:
    """Seconds of the first update and of the second, and memory in MB; called in a process of its own."""
    made, step = setting.adaptation(), variant(setting, name)
    draws = [made.draw() for _ in range(turn + 2)]
    del made
    before = resident()
    first = [update(step, draw) for draw in (draws if name == "ours, compiled" else draws[turn : turn + 1])]
    return {"first": sum(first), "seconds": update(step, draws[-1]), "peak": resident(), "before": before}


def run(name: str, threads: int, turn: int, quick: bool) -> dict[str, float]:
    """`child` in a process."""
    words = ["--threads", str(threads), "--child", name, str(turn), *["--quick"] * quick]
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def resident() -> float:
    scale = 1024**2 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model: checks that the script runs")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="the table is for the last number")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also time our step with torch.compile")
    parser.add_argument("--bf16", action="store_true", help="also time our step with the denoisers in bfloat16")
    parser.add_argument("--out", type=Path, default=RECORD / "benchmarks" / "train_step.json")
    parser.add_argument("--child", nargs=2, metavar=("VARIANT", "TURN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    size, last = QUICK if given.quick else PAPER, given.threads[-1]
    torch.set_num_threads(last)
    if given.child:
        name, turn = given.child
        sys.stdout.write(json.dumps(child(name, Setting(size, dropout=0.1), int(turn))))
        return

    names = [*VARIANTS, *["ours, bfloat16"] * given.bf16, *["ours, compiled"] * given.compile]
    pairs = [(n, last) for n in names] + [(n, k) for k in given.threads[:-1] for n in ("reference", "ours")]
    found = {pair: [] for pair in pairs}
    with tqdm(total=given.repetitions * len(pairs), disable=not sys.stderr.isatty(), desc="updates") as bar:
        for turn in range(given.repetitions):
            for name, threads in pairs:  # in turn, so that a change of the machine's load meets all of them
                found[name, threads].append(run(name, threads, turn, given.quick))
                bar.update()
    seconds = {pair: statistics.median(f["seconds"] for f in values) for pair, values in found.items()}
    setting = Setting(size, dropout=0.0)
    differences = {
        f"{name}{suffix}": value
        for suffix, double in (("", False), (", double precision", True))
        for name, value in deviation(setting, double).items()
    }
    rows = [
        {"variant": name, "threads": k, "seconds": took, "speed-up": seconds["reference", k] / took}
        for (name, k), took in seconds.items()
    ]
    faster = {row["variant"]: row["speed-up"] for row in rows if row["threads"] == last}
    summary = {}
    if given.compile:
        summary["seconds until compiled"] = statistics.median(f["first"] for f in found["ours, compiled", last])
        summary["speed-up from compiling"] = faster["ours, compiled"] / faster["ours"]
    if len(given.threads) > 1:
        one = given.threads[0]
        summary[f"speed-up from {one} to {last} threads"] = seconds["ours", one] / seconds["ours", last]
    work = {}
    for name in ("reference", "ours"):
        memory = found[name, last][0]
        summary[f"{name}: peak MB"] = memory["peak"]
        summary[f"{name}: MB added by updates"] = memory["peak"] - memory["before"]
        step = variant(setting, name)
        work[name] = flops(step, step.adaptation.draw()) / 1e12
        summary[f"{name}: TFLOP per update"] = work[name]
        summary[f"{name}: TFLOP of {STEPS} updates"] = work[name] * STEPS
        summary[f"{name}: hours on a GPU at {EFFECTIVE:g} TFLOP/s"] = work[name] * STEPS / EFFECTIVE / 3600
    summary |= {
        **{f"speed-up{name.removeprefix('ours')}": faster[name] for name in faster if name.startswith("ours")},
        "FLOP ratio": work["reference"] / work["ours"],
        **{f"largest relative difference of a {name}": value for name, value in differences.items()},
    }  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, {
        "name": "train_step", "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "environment": environment(),
        "settings": {
            **size, "quick": given.quick, "repetitions": given.repetitions, "threads": given.threads,
            "mean target frames": float(np.mean([len(x) for x in setting.shots.features])),
            "mean source frames": float(np.mean([len(x) for x in setting.source.features])),
        }, "rows": rows, "summary": summary,
    })  # fmt: skip
    for row in rows:
        sys.stdout.write(
            f"{row['variant']:40} {row['threads']} threads  {row['seconds']:8.3f} s  {row['speed-up']:5.2f}x\n"
        )
    for name, value in summary.items():
        sys.stdout.write(f"{name:55} {value:.4g}\n")


if __name__ == "__main__":
    main()
