"""Training: the text-to-motion prior, and its adaptation to a few labelled clips.

One loop serves both. It owns optimiser, averaging, clipping, checkpoints and resumption; what differs is one function
that turns a step into losses.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

from kinemic import motion
from kinemic.data import collate, crop_to_unit
from kinemic.denoiser import Denoiser, adapter_of, add_lora, merge_lora, trainable_parameters
from kinemic.diffusion import Diffusion, masked_mse, nearest_timestep
from kinemic.mining import MIC, MemoryBank, best_window, gather_window, soft_nearest_neighbour_loss, window_weight
from kinemic.retrieval import sample_partners

__all__ = ["Adapted", "Stream", "adapt", "load_model", "mine", "pretrain", "save_model"]

log = logging.getLogger(__name__)
LOG_POINTS = 100  # rows of the training log, whatever the number of steps


@dataclass
class Stream:
    """Clips of one side, ready to be drawn: everything a step reads is in memory.

    Attributes:
        features: per clip (T_i, 263) float32, as on disk.
        captions: per clip (C_i, E) text features for conditioning.
        actions: (N,) int64, -1 where there is none.
        normalizer: of the source; both sides use it, so that the prior's weights stay meaningful.
    """

    features: list[np.ndarray]
    captions: list[np.ndarray]
    actions: np.ndarray
    normalizer: motion.Normalizer

    def __post_init__(self):
        if not self.features:
            raise ValueError("a stream without clips cannot be trained on: the source or the shots are empty")
        for i, (x, c) in enumerate(zip(self.features, self.captions, strict=True)):
            if not np.isfinite(x).all() or not np.isfinite(c).all():
                raise ValueError(f"clip {i} of a training stream holds NaN or infinite values: drop it from its folder")

    def __len__(self) -> int:
        return len(self.features)

    def draw(self, rows: Sequence[int], rng: np.random.Generator, captions: Sequence[int | None] | None = None):
        """Crops of some clips with one caption each.

        Args:
            rows: clips.
            rng: draws crops and captions.
            captions: caption per clip, None = one drawn uniformly.

        Returns:
            Batch without caption strings, (B, E) text features, (B,) first frame of each crop.
        """
        pieces, text, starts = [], [], []
        for i, row in enumerate(rows):
            start, length = crop_to_unit(len(self.features[row]), rng)
            pieces.append(self.normalizer.normalize(self.features[row][start : start + length]))
            own = self.captions[row]
            chosen = captions[i] if captions is not None and captions[i] is not None else rng.integers(len(own))
            text.append(own[chosen])
            starts.append(start)
        batch = collate(pieces, [""] * len(pieces), self.actions[np.asarray(rows)])
        return batch, torch.from_numpy(np.stack(text)), np.array(starts)


# --- files ----------------------------------------------------------------------------------------------------------


def save_model(folder: str | Path, kind: str, model: nn.Module, settings: dict) -> None:
    """Write `model.safetensors` and `config.json` (kind, settings) into a folder; the second only after the first."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial)
    partial.replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"kind": kind, "settings": settings}, indent=1) + "\n")


def load_model(folder: str | Path, kind: str = "denoiser") -> Denoiser | MIC:
    """Model that `save_model` wrote.

    Raises:
        FileNotFoundError: the folder lacks one of the two files.
        ValueError: truncated or foreign file; names it, the first key that differs, and the mend.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: missing; a checkpoint is a folder with config.json and model.safetensors"
            )
    try:
        config = json.loads((folder / "config.json").read_text())
        found = config["kind"]
        made = {"denoiser": Denoiser, "mic": MIC}[kind](**config["settings"]) if found == kind else None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: not a checkpoint's configuration ({error}); write it again"
        ) from None
    if made is None:
        raise ValueError(f"{folder}: holds a {found!r}, a {kind!r} was expected; give the other folder")
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); delete the folder and train again") from None
    differ = sorted(set(state) ^ set(made.state_dict()))
    if differ:
        raise ValueError(f"{path}: weights of another model, {len(differ)} keys differ (first: {differ[0]})")
    for key, value in made.state_dict().items():
        if state[key].shape != value.shape or not bool(torch.isfinite(state[key]).all()):
            raise ValueError(
                f"{path}: {key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}, all finite"
            )
    made.load_state_dict(state)
    return made.eval()


# --- the loop -------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """State of a training run that a checkpoint must hold for the resumed run to be the same run."""

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    rng: np.random.Generator
    averaged: dict[str, Tensor] = field(default_factory=dict)
    bank: MemoryBank | None = None
    plan: list = field(default_factory=list)  # rows, or batches of rows, still to be drawn
    windows: list[np.ndarray] = field(default_factory=list)
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)

    def named(self) -> dict[str, nn.Parameter]:
        return {f"{m}.{n}": p for m, module in self.modules.items() for n, p in trainable_parameters(module)}

    def save(self, path: Path) -> None:
        tensors = {f"model.{n}": p.detach() for n, p in self.named().items()}
        tensors |= {f"ema.{n}": v for n, v in self.averaged.items()}
        tensors |= {"rng.global": torch.get_rng_state(), "rng.generator": self.generator.get_state()}
        tensors |= self.bank.state() if self.bank is not None else {}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optim.{i}.{k}": v for k, v in state.items()}
        if self.windows:
            tensors["windows"] = torch.from_numpy(np.concatenate(self.windows))
        meta = {"step": self.step, "log": self.log, "rng": self.rng.bit_generator.state, "plan": self.plan}
        partial = path.with_suffix(".partial")
        # A copy: parameters may share storage, which the format refuses.
        save_file(
            {k: v.cpu().clone().contiguous() for k, v in tensors.items()}, partial, metadata={"state": json.dumps(meta)}
        )
        partial.replace(path)

    def load(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads(file.metadata()["state"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
            with torch.no_grad():
                for n, p in self.named().items():
                    p.copy_(tensors[f"model.{n}"])
        except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path}: not a checkpoint of this run ({error}); delete it to start over") from None
        # In the order of the parameters: the file sorts its keys.
        self.averaged = {n: tensors[f"ema.{n}"] for n in self.named() if f"ema.{n}" in tensors}
        states: dict[int, dict[str, Tensor]] = {}
        for k, v in tensors.items():
            if k.startswith("optim."):
                _, i, name = k.split(".", 2)
                states.setdefault(int(i), {})[name] = v
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        torch.set_rng_state(tensors["rng.global"])
        self.generator.set_state(tensors["rng.generator"])
        self.rng.bit_generator.state = meta["rng"]
        if self.bank is not None:
            self.bank.load(tensors)
        self.windows[:] = [tensors["windows"].numpy()] if "windows" in tensors else []
        self.step, self.log, self.plan[:] = meta["step"], meta["log"], meta["plan"]


def _fit(
    run: _Run,
    losses: Callable[[int], dict[str, Tensor]],
    steps: int,
    *,
    max_grad_norm: float,
    ema_decay: float = 0.0,
    rate: Callable[[int], float] = lambda step: 1.0,
    checkpoint: Path | None = None,
    save_every: int = 1000,
    progress: str = "",
) -> None:
    """Run to `steps` updates, from the checkpoint if there is one; averaged weights replace the last at the end."""
    if checkpoint is not None and checkpoint.is_file():
        run.load(checkpoint)
        log.info("resumed %s at step %d", checkpoint, run.step)
    named = run.named()
    parameters = list(named.values())
    average = get_ema_multi_avg_fn(ema_decay) if ema_decay else None
    if average is not None and not run.averaged:
        run.averaged = {n: p.detach().clone() for n, p in named.items()}
    base = [group["lr"] for group in run.optimizer.param_groups]
    every = max(1, steps // LOG_POINTS)
    pending: list[dict[str, Tensor]] = []
    with tqdm(total=steps, initial=run.step, desc=progress, disable=not progress, mininterval=5, leave=False) as bar:
        while run.step < steps:
            for group, lr in zip(run.optimizer.param_groups, base, strict=True):
                group["lr"] = lr * rate(run.step)
            terms = losses(run.step)
            run.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            run.optimizer.step()
            if average is not None:
                average(list(run.averaged.values()), [p.detach() for p in parameters], None)
            run.step += 1
            bar.update()
            pending.append({k: v.detach() for k, v in terms.items()})
            if run.step % every == 0 or run.step == steps:  # one transfer per log row instead of one per step
                row = {k: float(torch.stack([p[k] for p in pending]).mean()) for k in pending[0]}
                pending.clear()
                if not math.isfinite(row["loss"]):
                    raise ValueError(
                        f"the loss is not finite near step {run.step}: lower the learning rate, or audit the clips"
                    )
                run.log.append({"step": run.step, **row})
                bar.set_postfix(loss=f"{row['loss']:.3f}")
            if checkpoint is not None and run.step % save_every == 0 and run.step < steps:
                run.save(checkpoint)
    if average is not None:
        with torch.no_grad():
            for n, p in named.items():
                p.copy_(run.averaged[n])
    for group, lr in zip(run.optimizer.param_groups, base, strict=True):
        group["lr"] = lr


def _warm_cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """Linear warm-up to 1, cosine to 0 at the last step."""
    return lambda i: min(1.0, (i + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * i / steps))


def _keep(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) >= probability


def _noise(batch: int, frames: int, features: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, frames, features, generator=generator, device=generator.device)


def pretrain(
    model: Denoiser,
    diffusion: Diffusion,
    source: Stream,
    *,
    steps: int,
    batch: int = 64,
    lr: float = 1e-4,
    warmup: int = 0,
    weight_decay: float = 0.0,
    ema_decay: float = 0.9999,
    cond_mask_prob: float = 0.1,
    max_grad_norm: float = 1.0,
    save_every: int = 1000,
    seed: int = 10,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    progress: str = "prior",
) -> list[dict[str, float]]:
    """Train a text-to-motion prior in place.

    Args:
        model: a denoiser without action table.
        diffusion: its noise schedule.
        source: captioned clips.
        steps, batch, lr, warmup, weight_decay: AdamW with linear warm-up and cosine decay.
        ema_decay: average of the weights that is kept at the end; 0 = none.
        cond_mask_prob: share of clips whose text is hidden, for guidance.
        checkpoint: file for resumption, or None.

    Returns:
        Training log, one row per hundredth of the run.

    Source: MDM training (Tevet et al. 2023): masked reconstruction error of the clean motion, t uniform.
    """
    torch.manual_seed(seed)  # dropout draws from the global generator, it has no argument for another
    generator, rng = torch.Generator(device).manual_seed(seed), np.random.default_rng(seed)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=device == "cuda")
    run = _Run({"model": model}, optimizer, generator, rng)
    lengths = np.array([len(x) for x in source.features])

    def losses(step: int) -> dict[str, Tensor]:
        plan = run.plan
        if not plan:  # clips of similar length share a batch, so that little is padded; a new shuffle for each block
            block = rng.choice(len(source), size=min(len(source), 16 * batch), replace=False)
            block = block[np.argsort(lengths[block] + rng.uniform(0, 8, len(block)))]
            plan.extend(part.tolist() for part in np.array_split(block, max(1, len(block) // batch)))
            rng.shuffle(plan)
        drawn, text, _ = source.draw(plan.pop(), rng)
        drawn, text = drawn.to(device), text.to(device)
        t = torch.randint(diffusion.num_timesteps, (len(text),), generator=generator, device=device)
        x_t = diffusion.q_sample(drawn.x, t, _noise(*drawn.x.shape, generator))
        keep = _keep(len(text), cond_mask_prob, generator)
        estimate = model(x_t, t, mask=drawn.mask, text=text, keep_text=keep)
        return {"loss": masked_mse(estimate, drawn.x, drawn.mask).mean()}

    _fit(
        run,
        losses,
        steps,
        max_grad_norm=max_grad_norm,
        ema_decay=ema_decay,
        rate=_warm_cosine(steps, warmup),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        save_every=save_every,
        progress=progress,
    )
    model.eval()
    return run.log


# --- adaptation -----------------------------------------------------------------------------------------------------


@dataclass
class Adapted:
    """What an adaptation leaves.

    Attributes:
        model: the generator, adapters merged, evaluation mode.
        mic: the mining module; None where nothing was mined.
        log: training log.
        windows: rows of (step, source clip, first frame, frames, target clip, weight), one per window trained on.
        adapter: what was merged into the model, see `denoiser.adapter_of`; None where all weights were tuned.
    """

    model: Denoiser
    mic: MIC | None
    log: list[dict[str, float]]
    windows: np.ndarray
    adapter: tuple[Any, dict[str, Tensor]] | None = None


def adapt(
    prior: Denoiser,
    diffusion: Diffusion,
    shots: Stream,
    source: Stream | None = None,
    lists: Sequence[Sequence[np.ndarray]] | None = None,
    *,
    num_actions: int,
    method: str = "kinemic",
    steps: int = 10_000,
    batch: int = 0,
    lr: float = 2e-5,
    mic_lr: float = 2e-5,
    action_lr: float = 1e-3,
    weight_decay: float = 1e-5,
    max_grad_norm: float = 1.0,
    ema_decay: float = 0.0,
    save_every: int = 1000,
    seed: int = 10,
    tuning: str = "lora",
    rank: int = 16,
    alpha: float = 32,
    lora_dropout: float = 0.1,
    weight_rec: float = 1.0,
    weight_con: float = 1.0,
    weight_win: float = 1.0,
    weight_dist: float = 0.0,
    window: str = "mined",
    window_weight_rule: str = "dynamic",
    pairs: str = "retrieved",
    condition: str = "text+action",
    cond_mask_prob: float = 0.1,
    condition_dropout: str = "joint",
    mic_condition: str = "full",
    teacher_mode: str = "eval",
    window_features: str = "recut",
    short_source: str = "mask",
    action_init: str = "zero",
    num_timesteps: int = 0,
    time_map: str = "nearest",
    warmup_steps: int = 0,
    mic_dim: int = 512,
    temperature: float = 0.07,
    bank: int = 60,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    progress: str = "adapt",
) -> Adapted:
    """Adapt a prior to a few labelled clips: KineMIC, naive fine-tuning or training from scratch.

    Args:
        prior: text-to-motion denoiser; not changed.
        diffusion: schedule of the prior.
        shots: the few real clips, with actions in 0..num_actions-1.
        source: source clips; needed by 'kinemic' only.
        lists: per shot, the soft positives of each of its captions (rows of `source`).
        method: 'kinemic' uses both streams; 'naive' only the shots; 'scratch' the shots and random initial weights.
        action_lr: of the action table; 0 = lr, as in the reference implementation.
        window, window_weight_rule, pairs, condition, ...: named alternatives, see `config.AdaptSettings`. Defaults are
            the method with the defects of the reference implementation repaired.
        checkpoint: file for resumption, or None.

    Returns:
        `Adapted`.

    Source: paper, training objective: reconstruction of the shots, soft nearest neighbour loss between target and
    source embeddings, reconstruction of the mined windows weighted by their similarity.
    """
    if method == "scratch":
        torch.manual_seed(seed)
        prior = Denoiser(**prior.settings)
        tuning = "full"
    mining = method == "kinemic"
    if mining and (source is None or lists is None):
        raise ValueError("method 'kinemic' needs source clips and their soft positives; or choose method 'naive'")
    torch.manual_seed(seed)
    generator, rng = torch.Generator(device).manual_seed(seed), np.random.default_rng(seed)
    teacher = copy.deepcopy(prior).to(device).requires_grad_(False).train(teacher_mode == "train") if mining else None
    student = prior.with_actions(num_actions, action_init).to(device)
    if tuning == "lora":
        add_lora(student, rank=rank, alpha=alpha, dropout=lora_dropout)
    elif method != "scratch":  # norms and the text projection stay the prior's
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(".norm" not in name and not name.startswith("embed_text"))
    student.train()
    use_text, use_action = "text" in condition, "action" in condition
    if not use_action:
        student.embed_action.requires_grad_(False)
    ours = Diffusion(num_timesteps) if num_timesteps else diffusion
    groups = [
        {"params": [p for n, p in trainable_parameters(student) if not n.startswith("embed_action")], "lr": lr},
        {
            "params": [p for n, p in trainable_parameters(student) if n.startswith("embed_action")],
            "lr": action_lr or lr,
        },
    ]
    modules: dict[str, nn.Module] = {"student": student}
    mic = memory = None
    if mining:
        mic = MIC(student.settings["dim"], mic_dim, temperature).to(device)
        memory = MemoryBank(bank)
        modules["mic"] = mic
        groups.append({"params": list(mic.parameters()), "lr": mic_lr})
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=weight_decay, fused=device == "cuda")
    run = _Run(modules, optimizer, generator, rng, bank=memory)
    batch = min(batch or len(shots), len(shots))
    order, mined, D = run.plan, run.windows, student.num_features

    def draw_shots() -> np.ndarray:
        if len(order) < batch:
            order[:] = rng.permutation(len(shots)).tolist()
        rows, order[:] = order[:batch], order[batch:]
        return np.array(rows)

    def drops(count: int) -> tuple[Tensor, Tensor]:
        text = _keep(count, cond_mask_prob, generator)
        return text, text if condition_dropout == "joint" else _keep(count, cond_mask_prob, generator)

    def naive(step: int) -> dict[str, Tensor]:
        drawn, text, _ = shots.draw(draw_shots(), rng)
        drawn, text = drawn.to(device), text.to(device)
        t = torch.randint(ours.num_timesteps, (len(text),), generator=generator, device=device)
        keep_text, keep_action = drops(len(text))
        x_t = ours.q_sample(drawn.x, t, _noise(*drawn.x.shape, generator))
        estimate = student(
            x_t,
            t,
            mask=drawn.mask,
            text=text if use_text else None,
            keep_text=keep_text,
            action=drawn.action if use_action else None,
            keep_action=keep_action,
        )
        return {"loss": masked_mse(estimate, drawn.x, drawn.mask).mean()}

    def teacher_time(t: Tensor) -> Tensor:
        if ours.num_timesteps == diffusion.num_timesteps:
            return t
        if time_map == "nearest":
            return nearest_timestep(t, ours.alphas_cumprod.to(device), diffusion.alphas_cumprod.to(device))
        # The reference's rule; its last value lies outside the prior's table and is cut here.
        up = torch.ceil(t * diffusion.num_timesteps / ours.num_timesteps).long()
        return up.clamp(max=diffusion.num_timesteps - 1)

    def two_streams(step: int) -> dict[str, Tensor]:
        rows = draw_shots()
        if pairs == "random":
            partners = rng.integers(len(source), size=batch)
        else:
            partners = sample_partners([lists[i] for i in rows], rng)
        g, text, _ = shots.draw(rows, rng)
        s, source_text, crop = source.draw(partners, rng)
        g, s, text, source_text = g.to(device), s.to(device), text.to(device), source_text.to(device)
        t = torch.randint(ours.num_timesteps, (batch,), generator=generator, device=device)
        noise = _noise(batch, max(s.x.shape[1], g.x.shape[1]), D, generator)  # one noise for both streams
        with torch.no_grad():
            hide = torch.zeros(batch, dtype=torch.bool, device=device)
            keep = _keep(batch, cond_mask_prob, generator) if teacher_mode == "train" else ~hide
            _, latent_s = teacher(
                ours.q_sample(s.x, t, noise[:, : s.x.shape[1]]),
                teacher_time(t),
                mask=s.mask,
                text=source_text,
                keep_text=hide if mic_condition == "free" else keep,
                return_latent=True,
            )
        z_s, attention = mic(latent_s, student.tokens(s.lengths))
        lengths = torch.minimum(s.lengths, g.lengths)
        per_frame = attention.repeat_interleave(student.patch, dim=1)[:, : s.x.shape[1]]
        if window == "random":
            room = (s.lengths - lengths + 1).cpu().numpy()
            start = torch.from_numpy(rng.integers(room)).to(device)
        else:
            start = best_window(per_frame, s.lengths, lengths)
        keep_text, keep_action = drops(batch)
        passes = [(ours.q_sample(g.x, t, noise[:, : g.x.shape[1]]), g.mask, keep_text, keep_action)]
        if window != "none":
            if window_features == "recut":  # rotations are relative to the heading of the clip's first frame
                first = crop + start.cpu().numpy()
                cut = [
                    source.normalizer.normalize(motion.recut(source.features[p], int(a), int(n)))
                    for p, a, n in zip(partners, first, lengths.cpu().numpy(), strict=True)
                ]
                x_w = collate(cut, [""] * batch, g.action.cpu()).x.to(device)
                x_w = gather_window(x_w, torch.zeros_like(start), lengths)
            else:
                x_w = gather_window(s.x, start, lengths)
            noise_w = gather_window(noise, start, lengths)
            width = g.x.shape[1]
            x_w, noise_w = (F.pad(a, (0, 0, 0, width - a.shape[1])) for a in (x_w, noise_w))
            mask_w = torch.arange(width, device=device)[None] < lengths[:, None]
            if short_source == "repeat":  # the reference trains on the frozen last frame of a source that is too short
                x_w, noise_w = (
                    a.gather(
                        1,
                        torch.minimum(torch.arange(width, device=device)[None], lengths[:, None] - 1)[..., None].expand(
                            -1, -1, D
                        ),
                    )
                    for a in (x_w, noise_w)
                )
                mask_w = g.mask
            passes.append((ours.q_sample(x_w, t, noise_w), mask_w, *drops(batch)))
        plain = len(passes)
        if mic_condition == "free":
            never = torch.zeros(batch, dtype=torch.bool, device=device)
            passes += [(x, m, never, never) for x, m, _, _ in passes]
        # Target and window share parameters and length: one pass over both costs less than two.
        x_t, mask, keep_t, keep_a = (torch.cat(parts) for parts in zip(*passes, strict=True))
        copies = len(passes)
        estimate, latent = student(
            x_t,
            t.repeat(copies),
            mask=mask,
            text=text.repeat(copies, 1) if use_text else None,
            keep_text=keep_t,
            action=g.action.repeat(copies) if use_action else None,
            keep_action=keep_a,
            return_latent=True,
        )
        estimates, latents = estimate.split(batch), latent.split(batch)
        seen = latents[plain:] if mic_condition == "free" else latents
        z_g, _ = mic(seen[0], student.tokens(g.lengths))
        terms = {"rec": masked_mse(estimates[0], g.x, g.mask).mean()}
        keys, labels = memory.with_current(z_s, g.action)
        terms["con"] = soft_nearest_neighbour_loss(z_g, keys, g.action, labels, mic.log_scale).mean()
        memory.push(z_s, g.action)
        terms["loss"] = weight_rec * terms["rec"] + weight_con * terms["con"]
        if window != "none":
            if window_weight_rule == "dynamic":
                with torch.no_grad():
                    z_w, _ = mic(seen[1], student.tokens(lengths))
                gamma = window_weight(z_g, z_w)
            else:
                gamma = torch.ones(batch, device=device)
            error = masked_mse(estimates[1], x_w, mask_w)
            terms |= {"win": error.mean(), "gamma": gamma.mean()}
            total = weight_win * error
            if weight_dist:
                total = total + weight_dist * distillation(latents[1], latent_s, start, lengths)
            if step >= warmup_steps:
                terms["loss"] = terms["loss"] + (gamma * total).mean()
            first = crop + start.cpu().numpy()
            mined.append(
                np.column_stack(
                    [np.full(batch, step), partners, first, lengths.cpu().numpy(), rows, gamma.cpu().numpy()]
                ).astype(np.float32)
            )
        return terms

    def distillation(latent_w: Tensor, latent_s: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
        """Per clip, error of the window's latent against the teacher's at the same tokens."""
        tokens = student.tokens(lengths)
        wanted = gather_window(latent_s, start // student.patch, tokens)
        wanted = F.pad(wanted, (0, 0, 0, latent_w.shape[1] - wanted.shape[1]))
        real = torch.arange(latent_w.shape[1], device=device)[None] < tokens[:, None]
        return masked_mse(latent_w, wanted, real)

    _fit(
        run,
        two_streams if mining else naive,
        steps,
        max_grad_norm=max_grad_norm,
        ema_decay=ema_decay,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        save_every=save_every,
        progress=progress,
    )
    windows = np.concatenate(mined) if mined else np.zeros((0, 6), np.float32)
    adapter = None
    if tuning == "lora":
        adapter = adapter_of(student)
        merge_lora(student)
    mic = mic.eval() if mic is not None else None
    return Adapted(student.eval().requires_grad_(False), mic, run.log, windows, adapter)


@torch.no_grad()
def mine(
    prior: Denoiser,
    mic: MIC,
    diffusion: Diffusion,
    source: Stream,
    rows: Sequence[int],
    *,
    timesteps: Sequence[int],
    seed: int = 0,
    batch: int = 64,
    condition_free: bool = False,
) -> list[np.ndarray]:
    """Attention of a trained MIC over whole source clips, for looking and for scoring against truth.

    Args:
        prior, mic, diffusion: as in training; both models in evaluation mode.
        source: the source stream.
        rows: clips to look at.
        timesteps: diffusion steps over which the attention is averaged, since MIC reads latents of noised clips.
        seed: of the noise.
        condition_free: hide the captions, as mic_condition 'free' did in training.

    Returns:
        Per clip, (T_i,) attention that sums to 1.
    """
    device = next(mic.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    prior = prior.to(device).eval()
    out: list[np.ndarray] = []
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        drawn = collate(
            [source.normalizer.normalize(source.features[i]) for i in part],
            [""] * len(part),
            source.actions[np.asarray(part)],
        ).to(device)
        text = torch.from_numpy(np.stack([source.captions[i][0] for i in part])).to(device)
        keep = torch.full((len(part),), not condition_free, device=device)
        total = torch.zeros(drawn.mask.shape, device=device)
        for step in timesteps:
            t = torch.full((len(part),), step, dtype=torch.long, device=device)
            x_t = diffusion.q_sample(drawn.x, t, _noise(*drawn.x.shape, generator))
            _, latent = prior(x_t, t, mask=drawn.mask, text=text, keep_text=keep, return_latent=True)
            attention = mic(latent, prior.tokens(drawn.lengths))[1]
            total += attention.repeat_interleave(prior.patch, dim=1)[:, : total.shape[1]]
        total = total * drawn.mask
        total = total / total.sum(dim=1, keepdim=True)
        out += [a[:n].cpu().numpy() for a, n in zip(total, drawn.lengths.tolist(), strict=True)]
    return out
