"""Training: the text-to-motion prior, and its adaptation to a few labelled clips.

One loop serves both, on one device or several. It owns optimiser, averaging, clipping, checkpoints and resumption; what
differs is one function that draws a batch and turns it into losses.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
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
from kinemic.data import Batch, collate, crop_to_unit
from kinemic.denoiser import Denoiser, adapter_of, add_lora, merge_lora, trainable_parameters
from kinemic.diffusion import Diffusion, masked_mse, nearest_timestep
from kinemic.launch import Team
from kinemic.mining import MIC, MemoryBank, best_window, gather_window, soft_nearest_neighbour_loss, window_weight
from kinemic.retrieval import sample_partners

__all__ = ["Adaptation", "Adapted", "Draw", "Stream", "adapt", "load_model", "mine", "pretrain", "save_model"]

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


def begin_with(model: Denoiser, folder: str | Path) -> str:
    """Give a model the weights of an equal one, or of one without text along the clip, whose knots begin at zero.

    Returns:
        SHA-256 of the weights' file.

    Raises:
        FileNotFoundError, ValueError: see `load_model`; or the sizes differ.
    """
    weights = load_model(folder).state_dict()
    theirs = {k: v.shape for k, v in weights.items()}
    ours = {k: v.shape for k, v in model.state_dict().items() if k in theirs or not k.startswith("text_track.")}
    foreign = sorted(k for k, _ in theirs.items() ^ ours.items())
    if foreign:
        raise ValueError(
            f"{folder}: does not fit the denoiser of this experiment (first: {foreign[0]}); change denoiser"
        )
    model.load_state_dict(weights, strict=False)
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


# --- the loop -------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """State of a training run that a checkpoint must hold for the resumed run to be the same run."""

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    rng: np.random.Generator
    team: Team
    seed: int
    averaged: dict[str, Tensor] = field(default_factory=dict)
    bank: MemoryBank | None = None
    plan: list = field(default_factory=list)  # rows, or batches of rows, still to be drawn
    windows: list[np.ndarray] = field(default_factory=list)
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self):
        if self.team.rank:  # the models are made by now; from here on processes must drop different units
            torch.manual_seed(self.seed + self.team.rank)

    def named(self) -> dict[str, nn.Parameter]:
        return {f"{m}.{n}": p for m, module in self.modules.items() for n, p in trainable_parameters(module)}

    def save(self, path: Path) -> None:
        """Write a checkpoint; called by all processes, the main one writes.

        The file replaces the last one only when it is complete and on the disk, so whatever stops the process, one good
        checkpoint stays. A disk that is full does not stop the training: it goes on with a warning, because hours of
        work are worth more than the ability to resume them, and room may be made before the next checkpoint is due.
        """
        states = self.team.gather(torch.get_rng_state()[None].to(self.team.device), self.team.size)
        if not self.team.main:
            return
        tensors = {f"model.{n}": p.detach() for n, p in self.named().items()}
        tensors |= {f"ema.{n}": v for n, v in self.averaged.items()}
        tensors |= {"rng.global": states, "rng.generator": self.generator.get_state()}
        tensors |= self.bank.state() if self.bank is not None else {}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optim.{i}.{k}": v for k, v in state.items()}
        if self.windows:
            tensors["windows"] = torch.from_numpy(np.concatenate(self.windows))
        meta = {"step": self.step, "log": self.log, "rng": self.rng.bit_generator.state, "plan": self.plan}
        partial = path.with_suffix(".partial")
        try:
            # A copy: parameters may share storage, which the format refuses.
            save_file(
                {k: v.cpu().clone().contiguous() for k, v in tensors.items()},
                partial,
                metadata={"state": json.dumps(meta)},
            )
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            log.warning(
                "%s: checkpoint of step %d could not be written (%s); training goes on, but would resume from the one "
                "before: make room",
                path, self.step, error,
            )  # fmt: skip

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
        if self.team.rank < len(tensors["rng.global"]):  # more processes than wrote it: the others have their seeds
            torch.set_rng_state(tensors["rng.global"][self.team.rank])
        self.generator.set_state(tensors["rng.generator"])
        self.rng.bit_generator.state = meta["rng"]
        if self.bank is not None:
            self.bank.load(tensors)
        self.windows[:] = [tensors["windows"].numpy()] if "windows" in tensors else []
        self.step, self.log, self.plan[:] = meta["step"], meta["log"], meta["plan"]


@contextmanager
def _memory_named(run: _Run) -> Iterator[None]:
    """Turns PyTorch's several errors of exhausted memory into one that names the mend."""
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory")):
            raise MemoryError(
                f"step {run.step} does not fit into the memory of {run.team.device}: make batch smaller and accumulate "
                "larger, or set precision to 'bf16'"
            ) from None
        raise


def _fit(
    run: _Run,
    losses: Callable[[int], dict[str, Tensor]],
    steps: int,
    *,
    max_grad_norm: float,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    rate: Callable[[int], float] = lambda step: 1.0,
    checkpoint: Path | None = None,
    save_every: int = 1000,
    progress: str = "",
) -> None:
    """Run to `steps` updates, from the checkpoint if there is one; averaged weights replace the last at the end.

    Args:
        run: state of the run.
        losses: step -> terms of a new draw, as means over the process's part; their mean over the processes counts.
        steps: updates.
        max_grad_norm: bound of the gradient's norm, over all trainable parameters, draws and processes.
        accumulate: draws per update; gradients and terms are averaged.
        ema_decay, rate, checkpoint, save_every, progress: see `pretrain` and `adapt`.

    Raises:
        ValueError: the loss is not finite, or the checkpoint is another run's.
        MemoryError: a step does not fit into memory.
    """
    team = run.team
    found = team.from_main(checkpoint if checkpoint is not None and checkpoint.is_file() else None)
    if found is not None:
        run.load(found)
        log.info("resumed %s at step %d", found, run.step)
    named = run.named()
    parameters = list(named.values())
    average = get_ema_multi_avg_fn(ema_decay) if ema_decay else None
    if average is not None and not run.averaged:
        run.averaged = {n: p.detach().clone() for n, p in named.items()}
    base = [group["lr"] for group in run.optimizer.param_groups]
    every = max(1, steps // LOG_POINTS)
    pending: list[dict[str, Tensor]] = []
    hidden = not (progress and team.main)
    with tqdm(total=steps, initial=run.step, desc=progress, disable=hidden, mininterval=5, leave=False) as bar:
        while run.step < steps:
            for group, lr in zip(run.optimizer.param_groups, base, strict=True):
                group["lr"] = lr * rate(run.step)
            run.optimizer.zero_grad(set_to_none=True)
            with _memory_named(run):
                for _ in range(accumulate):
                    terms = losses(run.step)
                    (terms["loss"] / accumulate).backward()
                    pending.append({k: v.detach() for k, v in terms.items()})
                team.average([p.grad for p in parameters if p.grad is not None])
                nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                run.optimizer.step()
            if average is not None:
                average(list(run.averaged.values()), [p.detach() for p in parameters], None)
            run.step += 1
            bar.update()
            if run.step % every == 0 or run.step == steps:  # one transfer per log row instead of one per step
                means = {k: torch.stack([p[k] for p in pending]).mean() for k in pending[0]}
                team.average(list(means.values()))
                row = {k: float(v) for k, v in means.items()}
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


def _part(batch: Batch, rows: slice) -> Batch:
    """Some clips of a batch, padded to the longest of them."""
    lengths = batch.lengths[rows]
    width = int(lengths.max())
    return Batch(
        batch.x[rows, :width], lengths, batch.mask[rows, :width], batch.action[rows], batch.captions[rows]
    )


def _adamw(parameters, device: str, **options) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=torch.device(device).type == "cuda", **options)


def _autocast(device: str, precision: str) -> Callable[[], AbstractContextManager]:
    """Context of the denoiser's passes; what follows them (MIC, losses) stays float32.

    It is PyTorch's own and not that of `accelerate`, which fixes one precision for the life of a Python process.
    """
    from accelerate.utils import is_bf16_available

    kind = torch.device(device).type
    if precision not in ("no", "bf16"):
        raise ValueError(f"precision is {precision!r}: choose 'no' or 'bf16'")
    if precision == "bf16" and kind != "cpu" and not is_bf16_available(ignore_tpu=True):
        raise ValueError(f"precision 'bf16': device {device!r} has no bfloat16; set precision to 'no'")
    return partial(torch.autocast, kind, torch.bfloat16, enabled=precision == "bf16")


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
    high_noise: float = 0.0,
    max_grad_norm: float = 1.0,
    save_every: int = 1000,
    seed: int = 10,
    accumulate: int = 1,
    precision: str = "no",
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
        high_noise: share of clips whose diffusion step is drawn from the noisiest fifth instead of from all. There the
            text decides what is drawn; further down the motion itself tells how it goes on.
        accumulate: batches whose gradients are averaged into one update.
        precision: 'bf16' runs the denoiser in bfloat16; losses and weights stay float32.
        device: 'cpu', 'cuda' or 'mps'. Where several processes were launched, `batch` is shared by them.
        checkpoint: file for resumption, or None.

    Returns:
        Training log, one row per hundredth of the run.

    Source: MDM training (Tevet et al. 2023): masked reconstruction error of the clean motion, t uniform.
    """
    team = Team(device)
    device, autocast = team.device, _autocast(team.device, precision)
    torch.manual_seed(seed)  # dropout draws from the global generator, it has no argument for another
    generator, rng = torch.Generator(device).manual_seed(seed), np.random.default_rng(seed)
    model.to(device).train()
    optimizer = _adamw(model.parameters(), lr=lr, weight_decay=weight_decay, device=device)
    run = _Run({"model": model}, optimizer, generator, rng, team, seed)
    lengths = np.array([len(x) for x in source.features])

    def losses(step: int) -> dict[str, Tensor]:
        plan = run.plan
        if not plan:  # clips of similar length share a batch, so that little is padded; a new shuffle for each block
            block = rng.choice(len(source), size=min(len(source), 16 * batch), replace=False)
            block = block[np.argsort(lengths[block] + rng.uniform(0, 8, len(block)))]
            plan.extend(part.tolist() for part in np.array_split(block, max(1, len(block) // batch)))
            rng.shuffle(plan)
        drawn, text, _ = source.draw(plan.pop(), rng)
        t = torch.randint(diffusion.num_timesteps, (len(text),), generator=generator, device=device)
        if high_noise:
            last = diffusion.num_timesteps - 1
            late = torch.rand(len(text), generator=generator, device=device) < high_noise
            t = torch.where(late, last - t // 5, t)
        noise, keep = _noise(*drawn.x.shape, generator), _keep(len(text), cond_mask_prob, generator)
        rows, weight = team.part(len(text)), team.weight(len(text))
        drawn, text, t = _part(drawn, rows).to(device), text[rows].to(device), t[rows]
        x_t = diffusion.q_sample(drawn.x, t, noise[rows, : drawn.x.shape[1]])
        with autocast():
            estimate = model(x_t, t, mask=drawn.mask, text=text, keep_text=keep[rows])
        return {"loss": masked_mse(estimate.float(), drawn.x, drawn.mask).mean() * weight}

    _fit(
        run,
        losses,
        steps,
        accumulate=accumulate,
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


@dataclass
class Draw:
    """Everything random in a step of the adaptation, dropout apart: the losses are a function of it and the models.

    Attributes:
        rows: (B,) shots.
        target: the shots' crops.
        text: (B, E) text features of the shots.
        t: (B,) long, diffusion steps.
        noise: (B, T, D); T covers both streams, which share it.
        keep: text and action, (B,) bool each, that the target pass sees.
        partners: (B,) source clips; this and what follows only where both streams run.
        crop: (B,) first frame of each source crop.
        source: the crops.
        source_text: (B, E).
        keep_source: (B,) bool, captions that the teacher sees.
        start: (B,) long, random windows; None where attention finds them.
        keep_window: as `keep`, of the window pass.
    """

    rows: np.ndarray
    target: Batch
    text: Tensor
    t: Tensor
    noise: Tensor
    keep: tuple[Tensor, Tensor]
    partners: np.ndarray | None = None
    crop: np.ndarray | None = None
    source: Batch | None = None
    source_text: Tensor | None = None
    keep_source: Tensor | None = None
    start: Tensor | None = None
    keep_window: tuple[Tensor, Tensor] | None = None

    def part(self, rows: slice, device: str) -> Draw:
        """The same for some of the rows, on a device."""

        def cut(value):
            if isinstance(value, tuple):
                return tuple(cut(v) for v in value)
            if isinstance(value, Batch):
                return _part(value, rows).to(device)
            if isinstance(value, Tensor):
                return value[rows].to(device)
            return None if value is None else value[rows]

        return Draw(**{f.name: cut(getattr(self, f.name)) for f in fields(self)})


class Adaptation:
    """Models, optimiser and step of one adaptation; `adapt` runs it.

    Args:
        prior: text-to-motion denoiser; not changed.
        diffusion: schedule of the prior.
        shots: the few real clips, with actions in 0..num_actions-1.
        source: source clips; needed by 'kinemic' only.
        lists: per shot, the soft positives of each of its captions (rows of `source`).
        method: 'kinemic' uses both streams; 'naive' only the shots; 'scratch' the shots and random initial weights.
        action_lr: of the action table; 0 = lr, as in the reference implementation.
        batch: clips per step, over all processes; 0 = all shots.
        window, window_weight_rule, pairs, condition, ...: named alternatives, see `config.AdaptSettings`. Defaults are
            the method with the defects of the reference implementation repaired.
        precision: 'bf16' runs both denoisers in bfloat16; MIC, losses and weights stay float32.

    Source: paper, training objective: reconstruction of the shots, soft nearest neighbour loss between target and
    source embeddings, reconstruction of the mined windows weighted by their similarity.
    """

    def __init__(
        self,
        prior: Denoiser,
        diffusion: Diffusion,
        shots: Stream,
        source: Stream | None = None,
        lists: Sequence[Sequence[np.ndarray]] | None = None,
        *,
        num_actions: int,
        method: str = "kinemic",
        batch: int = 0,
        lr: float = 2e-5,
        mic_lr: float = 2e-5,
        action_lr: float = 1e-3,
        weight_decay: float = 1e-5,
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
        precision: str = "no",
        device: str = "cpu",
    ):
        if method == "scratch":
            torch.manual_seed(seed)
            prior = Denoiser(**prior.settings)
            tuning = "full"
        self.tuning = tuning
        self.mining = method == "kinemic"
        if self.mining and (source is None or lists is None):
            raise ValueError("method 'kinemic' needs source clips and their soft positives; or choose method 'naive'")
        self.team = team = Team(device)
        self.device = device = team.device
        self.autocast = _autocast(device, precision)
        torch.manual_seed(seed)
        generator, rng = torch.Generator(device).manual_seed(seed), np.random.default_rng(seed)
        student = prior.with_actions(num_actions, action_init).to(device)
        if tuning == "lora":
            add_lora(student, rank=rank, alpha=alpha, dropout=lora_dropout)
        elif method != "scratch":  # norms and what reads the text stay the prior's
            for name, parameter in student.named_parameters():
                parameter.requires_grad_(".norm" not in name and not name.startswith(("embed_text", "text_track")))
        self.student = student.train()
        self.use_text, self.use_action = "text" in condition, "action" in condition
        if not self.use_action:
            student.embed_action.requires_grad_(False)
        groups = [
            {"params": [p for n, p in trainable_parameters(student) if not n.startswith("embed_action")], "lr": lr},
            {
                "params": [p for n, p in trainable_parameters(student) if n.startswith("embed_action")],
                "lr": action_lr or lr,
            },
        ]
        modules: dict[str, nn.Module] = {"student": student}
        self.teacher = self.mic = self.memory = None
        if self.mining:
            self.teacher = copy.deepcopy(prior).to(device).requires_grad_(False).train(teacher_mode == "train")
            self.mic = modules["mic"] = MIC(student.settings["dim"], mic_dim, temperature).to(device)
            self.memory = MemoryBank(bank)
            groups.append({"params": list(self.mic.parameters()), "lr": mic_lr})
        optimizer = _adamw([g for g in groups if g["params"]], weight_decay=weight_decay, device=device)
        self.run = _Run(modules, optimizer, generator, rng, team, seed, bank=self.memory)
        self.shots, self.source, self.lists = shots, source, lists
        self.batch = min(batch or len(shots), len(shots))
        self.diffusion, self.ours = diffusion, Diffusion(num_timesteps) if num_timesteps else diffusion
        self.weight_rec, self.weight_con, self.weight_win, self.weight_dist = (
            weight_rec, weight_con, weight_win, weight_dist
        )  # fmt: skip
        self.window, self.window_weight_rule, self.window_features = window, window_weight_rule, window_features
        self.pairs, self.cond_mask_prob, self.condition_dropout = pairs, cond_mask_prob, condition_dropout
        self.mic_condition, self.teacher_mode, self.short_source = mic_condition, teacher_mode, short_source
        self.time_map, self.warmup_steps = time_map, warmup_steps

    def draw(self) -> Draw:
        """The next global batch, with all that is random in its step."""
        rng, generator, order, batch = self.run.rng, self.run.generator, self.run.plan, self.batch
        if len(order) < batch:
            order[:] = rng.permutation(len(self.shots)).tolist()
        rows, order[:] = np.array(order[:batch]), order[batch:]
        if not self.mining:
            target, text, _ = self.shots.draw(rows, rng)
            t, keep = self._times(), self._drops()
            return Draw(rows, target, text, t, _noise(*target.x.shape, generator), keep)
        if self.pairs == "random":
            partners = rng.integers(len(self.source), size=batch)
        else:
            partners = sample_partners([self.lists[i] for i in rows], rng)
        target, text, _ = self.shots.draw(rows, rng)
        source, source_text, crop = self.source.draw(partners, rng)
        start = None
        if self.window == "random":
            room = source.lengths - torch.minimum(source.lengths, target.lengths) + 1
            start = torch.from_numpy(rng.integers(room.numpy()))
        t = self._times()
        noise = _noise(batch, max(source.x.shape[1], target.x.shape[1]), self.student.num_features, generator)
        keep_source = torch.ones(batch, dtype=torch.bool, device=self.device)
        if self.teacher_mode == "train":
            keep_source = _keep(batch, self.cond_mask_prob, generator)
        keep = self._drops()
        keep_window = self._drops() if self.window != "none" else None
        return Draw(
            rows, target, text, t, noise, keep, partners, crop, source, source_text, keep_source, start, keep_window
        )

    def losses(self, draw: Draw, step: int = 0) -> dict[str, Tensor]:
        """Loss terms of this process's part of a draw, scaled so that their mean over the processes is the global one.

        The bank is pushed, and mined windows are noted, as side effects.

        Returns:
            'loss', whose gradient trains; and where both streams run its parts 'rec', 'con', 'win', and mean 'gamma'.
        """
        count = len(draw.rows)
        part = draw.part(self.team.part(count), self.device)
        terms = self._two_streams(part, step, draw.target.action.to(self.device)) if self.mining else self._naive(part)
        return {k: v * self.team.weight(count) for k, v in terms.items()}

    def _times(self) -> Tensor:
        steps = self.ours.num_timesteps
        return torch.randint(steps, (self.batch,), generator=self.run.generator, device=self.device)

    def _drops(self) -> tuple[Tensor, Tensor]:
        text = _keep(self.batch, self.cond_mask_prob, self.run.generator)
        if self.condition_dropout == "joint":
            return text, text
        return text, _keep(self.batch, self.cond_mask_prob, self.run.generator)

    def _naive(self, d: Draw) -> dict[str, Tensor]:
        with self.autocast():
            estimate = self.student(
                self.ours.q_sample(d.target.x, d.t, d.noise[:, : d.target.x.shape[1]]),
                d.t,
                mask=d.target.mask,
                text=d.text if self.use_text else None,
                keep_text=d.keep[0],
                action=d.target.action if self.use_action else None,
                keep_action=d.keep[1],
            )
        return {"loss": masked_mse(estimate.float(), d.target.x, d.target.mask).mean()}

    def _teacher_time(self, t: Tensor) -> Tensor:
        ours, prior = self.ours, self.diffusion
        if ours.num_timesteps == prior.num_timesteps:
            return t
        if self.time_map == "nearest":
            return nearest_timestep(t, ours.alphas_cumprod.to(self.device), prior.alphas_cumprod.to(self.device))
        # The reference's rule; its last value lies outside the prior's table and is cut here.
        return torch.ceil(t * prior.num_timesteps / ours.num_timesteps).long().clamp(max=prior.num_timesteps - 1)

    def _two_streams(self, d: Draw, step: int, labels: Tensor) -> dict[str, Tensor]:
        g, s, t, student, mic = d.target, d.source, d.t, self.student, self.mic
        batch, width = g.x.shape[:2]
        never = torch.zeros(batch, dtype=torch.bool, device=self.device)
        with torch.no_grad(), self.autocast():
            _, latent_s = self.teacher(
                self.ours.q_sample(s.x, t, d.noise[:, : s.x.shape[1]]),
                self._teacher_time(t),
                mask=s.mask,
                text=d.source_text,
                keep_text=never if self.mic_condition == "free" else d.keep_source,
                return_latent=True,
            )
        latent_s = latent_s.float()
        z_s, attention = mic(latent_s, student.tokens(s.lengths))
        lengths = torch.minimum(s.lengths, g.lengths)
        per_frame = attention.repeat_interleave(student.patch, dim=1)[:, : s.x.shape[1]]
        start = best_window(per_frame, s.lengths, lengths) if d.start is None else d.start
        passes = [(self.ours.q_sample(g.x, t, d.noise[:, :width]), g.mask, *d.keep)]
        if self.window != "none":
            x_w, noise_w, mask_w = self._windows(d, start, lengths)
            passes.append((self.ours.q_sample(x_w, t, noise_w), mask_w, *d.keep_window))
        plain = len(passes)
        if self.mic_condition == "free":
            passes += [(x, m, never, never) for x, m, _, _ in passes]
        # Target and window share parameters and length: one pass over both costs less than two.
        x_t, mask, keep_t, keep_a = (torch.cat(parts) for parts in zip(*passes, strict=True))
        copies = len(passes)
        with self.autocast():
            estimate, latent = student(
                x_t,
                t.repeat(copies),
                mask=mask,
                text=d.text.repeat(copies, 1) if self.use_text else None,
                keep_text=keep_t,
                action=g.action.repeat(copies) if self.use_action else None,
                keep_action=keep_a,
                return_latent=True,
            )
        estimates, latents = estimate.float().split(batch), latent.float().split(batch)
        seen = latents[plain:] if self.mic_condition == "free" else latents
        z_g, _ = mic(seen[0], student.tokens(g.lengths))
        terms = {"rec": masked_mse(estimates[0], g.x, g.mask).mean()}
        # Every process sees the keys of all, so that the bank is the same everywhere and that of one process.
        current = self.team.gather(z_s, len(labels))
        keys, key_labels = self.memory.with_current(current, labels)
        terms["con"] = soft_nearest_neighbour_loss(z_g, keys, g.action, key_labels, mic.log_scale).mean()
        self.memory.push(current, labels)
        terms["loss"] = self.weight_rec * terms["rec"] + self.weight_con * terms["con"]
        if self.window != "none":
            if self.window_weight_rule == "dynamic":
                with torch.no_grad():
                    z_w, _ = mic(seen[1], student.tokens(lengths))
                gamma = window_weight(z_g, z_w)
            else:
                gamma = torch.ones(batch, device=self.device)
            error = masked_mse(estimates[1], x_w, mask_w)
            terms |= {"win": error.mean(), "gamma": gamma.mean()}
            total = self.weight_win * error
            if self.weight_dist:
                total = total + self.weight_dist * self._distillation(latents[1], latent_s, start, lengths)
            if step >= self.warmup_steps:
                terms["loss"] = terms["loss"] + (gamma * total).mean()
            first = d.crop + start.cpu().numpy()
            rows = [np.full(batch, step), d.partners, first, lengths.cpu().numpy(), d.rows, gamma.cpu().numpy()]
            noted = torch.from_numpy(np.column_stack(rows).astype(np.float32)).to(self.device)
            self.run.windows.append(self.team.gather(noted, len(labels)).cpu().numpy())
        return terms

    def _windows(self, d: Draw, start: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clean windows (B, T, D), their noise and their mask (B, T), as wide as the target batch."""
        width, frames = d.target.x.shape[1], torch.arange(d.target.x.shape[1], device=self.device)[None]
        if self.window_features == "recut":  # rotations are relative to the heading of the clip's first frame
            first = d.crop + start.cpu().numpy()
            cut = [
                self.source.normalizer.normalize(motion.recut(self.source.features[p], int(a), int(n)))
                for p, a, n in zip(d.partners, first, lengths.cpu().numpy(), strict=True)
            ]
            x = collate(cut, [""] * len(cut)).x.to(self.device)
            x = gather_window(x, torch.zeros_like(start), lengths)
        else:
            x = gather_window(d.source.x, start, lengths)
        noise = gather_window(d.noise, start, lengths)
        x, noise = (F.pad(a, (0, 0, 0, width - a.shape[1])) for a in (x, noise))
        if self.short_source == "mask":
            return x, noise, frames < lengths[:, None]
        # the reference trains on the frozen last frame of a source that is too short
        last = torch.minimum(frames, lengths[:, None] - 1)[..., None].expand(-1, -1, x.shape[-1])
        return x.gather(1, last), noise.gather(1, last), d.target.mask

    def _distillation(self, latent_w: Tensor, latent_s: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
        """Per clip, error of the window's latent against the teacher's at the same tokens."""
        tokens = self.student.tokens(lengths)
        wanted = gather_window(latent_s, start // self.student.patch, tokens)
        wanted = F.pad(wanted, (0, 0, 0, latent_w.shape[1] - wanted.shape[1]))
        real = torch.arange(latent_w.shape[1], device=self.device)[None] < tokens[:, None]
        return masked_mse(latent_w, wanted, real)


def adapt(
    prior: Denoiser,
    diffusion: Diffusion,
    shots: Stream,
    source: Stream | None = None,
    lists: Sequence[Sequence[np.ndarray]] | None = None,
    *,
    steps: int = 10_000,
    accumulate: int = 1,
    max_grad_norm: float = 1.0,
    ema_decay: float = 0.0,
    save_every: int = 1000,
    checkpoint: str | Path | None = None,
    progress: str = "adapt",
    **options,
) -> Adapted:
    """Adapt a prior to a few labelled clips: KineMIC, naive fine-tuning or training from scratch.

    Args:
        prior, diffusion, shots, source, lists, **options: see `Adaptation`; `num_actions` is needed.
        steps: updates.
        accumulate: draws whose gradients are averaged into one update; each pushes its keys into the bank.
        max_grad_norm: bound of the norm of an update's gradient, over all trainable parameters.
        ema_decay: average of the weights that is kept at the end; 0 = none.
        save_every, checkpoint: a file for resumption and updates between writing it, or None.
        progress: name on the bar; empty = no bar.

    Returns:
        `Adapted`.
    """
    adaptation = Adaptation(prior, diffusion, shots, source, lists, **options)
    run, student, mic = adaptation.run, adaptation.student, adaptation.mic
    _fit(
        run,
        lambda step: adaptation.losses(adaptation.draw(), step),
        steps,
        accumulate=accumulate,
        max_grad_norm=max_grad_norm,
        ema_decay=ema_decay,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        save_every=save_every,
        progress=progress,
    )
    windows = np.concatenate(run.windows) if run.windows else np.zeros((0, 6), np.float32)
    adapter = None
    if adaptation.tuning == "lora":
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
