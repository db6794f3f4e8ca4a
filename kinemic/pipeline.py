"""The verbs of an experiment: prepare, pretrain, retrieve, adapt, synthesize, evaluate.

Each joins the core modules for one `Experiment`, keeps its result in the artefact store and loads it the next time.
Nothing below this module knows of experiments, folders or caches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from tqdm.auto import tqdm

from kinemic import checkpoints, har, metrics, motion, train
from kinemic import world as embedded
from kinemic.artefacts import ROOT, Artefact, Missing, Store, code_of
from kinemic.config import AdaptSettings, Experiment, HarSettings
from kinemic.data import (
    OFFICIAL,
    Clip,
    entries,
    few_shot,
    read_humanml3d,
    read_ntu_vibe,
    subject_disjoint,
    write_humanml3d,
)
from kinemic.denoiser import Denoiser
from kinemic.diffusion import Diffusion
from kinemic.launch import Team, several
from kinemic.retrieval import Neighbours, caption_means, soft_positives
from kinemic.text import TextCache, load_encoder

__all__ = ["Dataset", "Lab", "MinedWindows", "TrainingSet", "shown"]

PREPARE = ("motion", "data", "acting", "world")
TRAIN = ("motion", "data", "denoiser", "diffusion", "mining", "retrieval", "train")


@dataclass(frozen=True)
class Dataset:
    """Both sides of an experiment.

    Attributes:
        source: entries of the text-to-motion corpus, captioned.
        pool: labelled target clips from which shots are drawn.
        test: labelled target clips of other subjects; empty where a folder has none.
        classes: target classes, sorted; an action id is the position in this tuple.
        captions: one sentence per class.
        truth: class -> labels of ground-truth segments that show it; empty for real data.
        normalizer: fitted on the source only.
        origin: what source and target were read from, in this order.
    """

    source: list[Clip]
    pool: list[Clip]
    test: list[Clip]
    classes: tuple[str, ...]
    captions: dict[str, str]
    truth: dict[str, tuple[str, ...]]
    normalizer: motion.Normalizer
    origin: tuple[Artefact, Artefact]

    def labels(self, clips: Sequence[Clip]) -> np.ndarray:
        """(N,) action ids.

        Raises:
            ValueError: a clip's label is not among the classes.
        """
        table = {name: i for i, name in enumerate(self.classes)}
        for clip in clips:
            if clip.action not in table:
                raise ValueError(
                    f"clip {clip.name}: label {clip.action!r} is not in the table {', '.join(self.classes)}"
                )
        return np.array([table[clip.action] for clip in clips], dtype=np.int64)


@dataclass(frozen=True)
class TrainingSet:
    """Clips for the classifier: joints (T, 22, 3), labels, and which are synthetic."""

    joints: list[np.ndarray]
    labels: np.ndarray
    synthetic: np.ndarray

    def __add__(self, other: TrainingSet) -> TrainingSet:
        return TrainingSet(
            self.joints + other.joints,
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.synthetic, other.synthetic]),
        )


@dataclass(frozen=True)
class MinedWindows:
    """Windows cut from retrieved source motions.

    Attributes:
        rows: (N,) source entries.
        start, length: (N,) frames.
        action: (N,) class for which each was mined.
        attention: N arrays (T_i,); empty arrays where no attention chose the window.
    """

    rows: np.ndarray
    start: np.ndarray
    length: np.ndarray
    action: np.ndarray
    attention: list[np.ndarray] = field(default_factory=list)


def shown(clip: Clip, frames: int = 8) -> list[str]:
    """Actions of a source clip in order: labels of its true segments of at least `frames` frames, except standing."""
    return [s.label for s in clip.segments if s.label != "stand" and s.end - s.start >= frames]


def _folder_artefact(folder: Path) -> Artefact:
    """Fingerprint of a data folder by the names, sizes and times of its files; the content may be gigabytes."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give 'embedded' or a data folder (see the chapter on data)")
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return Artefact(folder, digest.hexdigest()[:16])


def _updates(settings: HarSettings, training: TrainingSet) -> int:
    """Updates that a classifier gets on a training set."""
    if settings.budget == "updates":
        return settings.updates
    return har.epoch_updates(len(training.joints), settings.batch)


@lru_cache(maxsize=1)
def _lab_of_worker(experiment: Experiment, root: Path) -> Lab:
    """A process that computes for `Lab.each` reads the data once."""
    return Lab(experiment, Store(root), progress=False)


def _located(given: str) -> Path:
    """Folder of a checkpoint; parameter files may name the one that comes with the package by its path in it."""
    folder = Path(given)
    return folder if folder.is_absolute() or folder.exists() else ROOT / folder


def _compute(experiment: Experiment, root: Path, verb: str, arguments: Mapping[str, Any]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # also where joblib finds a single job and runs it in the calling process
    try:
        getattr(_lab_of_worker(experiment, root), verb)(**arguments)
    finally:
        torch.set_num_threads(threads)


class Lab:
    """One experiment at work.

    Args:
        experiment: validated settings.
        store: where artefacts live; default the project's cache.
        progress: show progress bars.
    """

    def __init__(self, experiment: Experiment, store: Store | None = None, *, progress: bool = True):
        self.cfg, self.store, self.progress = experiment, store or Store(), progress
        self.device = self._device(experiment.device)
        self.diffusion = Diffusion(experiment.diffusion.num_timesteps)

    @staticmethod
    def _device(wanted: str) -> str:
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if wanted == "auto":
            wanted = next(d for d in ("cuda", "mps", "cpu") if available[d])
        if not available[wanted]:
            raise ValueError(f"device {wanted!r} is not available to this PyTorch: use device 'auto' or 'cpu'")
        return Team(wanted).device if several() else wanted

    def each(self, verb: str, calls: Sequence[Mapping[str, Any]]) -> list:
        """Results of `adapt`, `synthesize` or `evaluate` for several sets of arguments, in their order.

        What the store lacks is computed first. On CPU that is done side by side, a process per core with one thread
        each: models of this size gain little from a second thread, and results do not depend on the number of cores.
        On a GPU, and where several processes were launched, the calls go one after the other. What was finished before
        an error is kept.

        Args:
            verb: name of the method.
            calls: its arguments, by name.
        """
        lacking = []
        with self.store.loading_only():
            for arguments in calls:
                try:
                    getattr(self, verb)(**arguments)
                except Missing:
                    lacking.append(arguments)
        if lacking and self.device == "cpu" and not several():
            # what all of them read is made here, with all threads and its own progress bar
            _ = self.data if verb == "evaluate" else (self.prior, self.source_stream)
            jobs = (joblib.delayed(_compute)(self.cfg, self.store.root, verb, arguments) for arguments in lacking)
            processes = min(joblib.cpu_count(), len(lacking))
            with joblib.parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
                done = joblib.Parallel(return_as="generator_unordered", max_nbytes=None)(jobs)
                for _ in tqdm(done, desc=verb, total=len(lacking), disable=not self.progress, leave=False):
                    pass
        return [getattr(self, verb)(**arguments) for arguments in calls]

    # --- prepare ----------------------------------------------------------------------------------------------------

    @property
    def source_identity(self) -> dict:
        """What identifies the source side of the embedded world; a shipped prior must have been trained on the same."""
        return self.cfg.world.model_dump(include={"source_clips", "seed"}) | {"version": embedded.VERSION}

    @cached_property
    def world(self) -> Artefact:
        """The embedded world as two data folders, `source` and `target`."""

        def compute(folder: Path) -> dict:
            made = embedded.make_world(**self.cfg.world.model_dump(), retarget=self.cfg.data.retarget)
            fitted = motion.Normalizer.fit([c.features for c in made.source])
            write_humanml3d(folder / "source", {"train": made.source}, fitted)
            write_humanml3d(folder / "target", {"pool": made.pool, "test": made.test}, fitted)
            return {"source clips": len(made.source), "pool": len(made.pool), "test": len(made.test)}

        settings = self.cfg.world.model_dump() | {"version": embedded.VERSION, "retarget": self.cfg.data.retarget}
        return self.store.run("world", settings, compute, modules=PREPARE)

    @cached_property
    def data(self) -> Dataset:
        """Source, few-shot pool and test set, from the embedded world or from folders."""
        cfg = self.cfg
        truth: dict[str, tuple[str, ...]] = {}
        if cfg.source == "embedded":
            origin = self.world
            source, normalizer = (
                read_humanml3d(origin.folder / "source"),
                motion.Normalizer.load(origin.folder / "source"),
            )
        else:
            origin = _folder_artefact(Path(cfg.source))
            source = read_humanml3d(origin.folder, "train")
            if cfg.data.limit:
                source = source[: cfg.data.limit]
            if (origin.folder / "Mean.npy").is_file():
                normalizer = motion.Normalizer.load(origin.folder)
            else:
                normalizer = motion.Normalizer.fit([c.features for c in source])
        if cfg.target == "embedded":
            target = self.world
            pool, test = (read_humanml3d(target.folder / "target", split) for split in ("pool", "test"))
            if cfg.source == "embedded":
                truth = {name: (name,) for name in embedded.CLASSES}  # segments are labelled by primitive
        else:
            target = _folder_artefact(Path(cfg.target))
            if (target.folder / "ntu_classes.txt").is_file():
                pool, test = self._sides(read_ntu_vibe, target.folder) or (
                    read_ntu_vibe(target.folder, cfg.data.split),
                    [],
                )
                if cfg.data.retarget:
                    pool, test = ([replace(c, features=self._on_reference_bones(c)) for c in s] for s in (pool, test))
            else:
                pool, test = self._sides(read_humanml3d, target.folder) or (
                    read_humanml3d(target.folder, split) for split in ("pool", "test")
                )
        # the cross-setup protocol promises other set-ups, and has people on both sides by design
        if test and cfg.data.split != "official-xset":
            subject_disjoint(pool, test)
        source = [c for c in entries(source, cfg.data.min_frames, cfg.data.max_frames) if c.captions]
        classes = tuple(sorted({c.action for c in pool}))
        captions = {}
        for clip in pool:
            if not clip.captions:
                raise ValueError(
                    f"target clip {clip.name} has no caption: write one sentence per class into its text file"
                )
            captions.setdefault(clip.action, clip.captions[0].text)
        return Dataset(source, pool, test, classes, captions, truth, normalizer, (origin, target))

    def _sides(self, read: Callable, folder: Path) -> tuple[list[Clip], list[Clip]] | None:
        """Pool and test by an official protocol of NTU RGB+D; None where the settings name a list of the folder."""
        split = self.cfg.data.split
        if split not in OFFICIAL:
            return None
        pool, test = (read(folder, f"{split}/{side}") for side in ("train", "test"))
        classes = {clip.action for clip in pool}
        return pool, [clip for clip in test if clip.action in classes]

    @staticmethod
    def _on_reference_bones(clip: Clip) -> np.ndarray:
        """Features of the clip on the skeleton that the source and its statistics have; (T, 263)."""
        poses = motion.decode(clip.features, extra_pose=True)
        return motion.process(poses, motion.FPS, floor="lowest")

    @cached_property
    def text(self) -> TextCache:
        """Sentence encoder with its cache."""
        encoder = load_encoder(self.cfg.text.encoder, self.cfg.text.weights, self.device)
        return TextCache(encoder, self.store.root / "text")

    def _stream(self, clips: Sequence[Clip], actions: np.ndarray | None = None) -> train.Stream:
        texts = [c.text for clip in clips for c in clip.captions]
        features = self.text(texts, "condition")
        ends = np.cumsum([len(clip.captions) for clip in clips])
        return train.Stream(
            [clip.features for clip in clips],
            np.split(features, ends[:-1]),
            np.full(len(clips), -1) if actions is None else actions,
            self.data.normalizer,
        )

    @cached_property
    def source_stream(self) -> train.Stream:
        """All source entries, ready to be drawn."""
        return self._stream(self.data.source)

    # --- prior ------------------------------------------------------------------------------------------------------

    @cached_property
    def prior(self) -> Artefact:
        """Text-to-motion prior: trained on the source, or the checkpoint the settings name."""
        cfg = self.cfg
        if cfg.pretrain.checkpoint:
            folder = _located(cfg.pretrain.checkpoint)
            published = checkpoints.find_mdm(folder)
            if published is not None:
                return self._published_prior(published)
            model = train.load_model(folder)
            if model.settings["text_dim"] != self.text.encoder.dim:
                raise ValueError(
                    f"{folder}: conditioned on {model.settings['text_dim']}-d text, encoder "
                    f"{self.text.encoder.name!r} gives {self.text.encoder.dim}; change text.encoder"
                )
            made_on = Artefact(folder, "").manifest.get("world") if (folder / "manifest.json").is_file() else None
            if made_on and cfg.source == "embedded" and made_on != self.source_identity:
                raise ValueError(
                    f"{folder}: trained on another embedded world ({made_on}, this is {self.source_identity}); "
                    "run `make prior`, or set pretrain.checkpoint to null to train here"
                )
            digest = hashlib.sha256((folder / "model.safetensors").read_bytes() + (folder / "config.json").read_bytes())
            return Artefact(folder, digest.hexdigest()[:16])
        torch.manual_seed(cfg.pretrain.seed)
        model = Denoiser(motion.NUM_FEATURES, self.text.encoder.dim, **cfg.denoiser.model_dump())
        start = train.begin_with(model, _located(cfg.pretrain.start)) if cfg.pretrain.start else None
        settings = {
            "pretrain": {**cfg.pretrain.model_dump(exclude={"checkpoint", "save_every"}), "start": start},
            "source": self.data.origin[0].key, "denoiser": cfg.denoiser.model_dump(),
            "num_timesteps": cfg.diffusion.num_timesteps, "encoder": self.text.encoder.fingerprint,
            "data": cfg.data.model_dump(exclude={"split", "retarget"}),
        }  # fmt: skip

        def compute(folder: Path) -> dict:
            log = train.pretrain(
                model, self.diffusion, self.source_stream, device=self.device,
                progress="prior" if self.progress else "", checkpoint=folder / "training.safetensors",
                **cfg.pretrain.model_dump(exclude={"checkpoint", "start"}),
            )  # fmt: skip
            train.save_model(folder, "denoiser", model, model.settings)
            (folder / "log.json").write_text(json.dumps(log))
            (folder / "training.safetensors").unlink(missing_ok=True)
            return {"loss": log[-1]["loss"], "parameters": sum(p.numel() for p in model.parameters())}

        return self.store.run("prior", settings, compute, modules=TRAIN)

    def _published_prior(self, path: Path) -> Artefact:
        """A checkpoint of MDM in our layout, converted once."""

        def compute(folder: Path) -> dict:
            model, args = checkpoints.load_mdm(path)
            given = {"diffusion_steps": args["diffusion_steps"], **model.settings}
            wanted = {
                "num_features": (motion.NUM_FEATURES, "take a prior trained on HumanML3D vectors"),
                "text_dim": (self.text.encoder.dim, f"encoder {self.text.encoder.name!r}: change text.encoder"),
                "diffusion_steps": (self.diffusion.num_timesteps, "change diffusion.num_timesteps"),
            }
            for name, (value, mend) in wanted.items():
                if given[name] != value:
                    raise ValueError(f"{path}: has {name} {given[name]}, this experiment {value} ({mend})")
            train.save_model(folder, "denoiser", model, model.settings)
            return {"parameters": sum(p.numel() for p in model.parameters())}

        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint; change pretrain.checkpoint")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        arguments = path.with_name("args.json")
        digest.update(arguments.read_bytes() if arguments.is_file() else b"")
        settings = {
            "published": digest.hexdigest(), "num_timesteps": self.diffusion.num_timesteps,
            "text_dim": self.text.encoder.dim,
        }  # fmt: skip
        return self.store.run("prior", settings, compute, modules=("denoiser", "checkpoints"))

    @cached_property
    def prior_model(self) -> Denoiser:
        """The prior's weights."""
        return train.load_model(self.prior.folder).to(self.device)

    # --- retrieve ---------------------------------------------------------------------------------------------------

    @cached_property
    def bank(self) -> np.ndarray:
        """(M, E) one vector per source entry, for retrieval."""
        clips = self.data.source
        features = self.text([c.text for clip in clips for c in clip.captions], "retrieval")
        return caption_means(features, [len(clip.captions) for clip in clips])

    def retrieve(self, top_k: int | None = None) -> Neighbours:
        """Soft positives of each class, in the order of the classes."""
        queries = self.text([self.data.captions[c] for c in self.data.classes], "retrieval")
        return soft_positives(queries, self.bank, self.cfg.mining.top_k if top_k is None else top_k)

    def soft_positive_lists(self, clips: Sequence[Clip]) -> list[list[np.ndarray]]:
        """Per target clip, one array of source indices for each of its captions."""
        texts = sorted({c.text for clip in clips for c in clip.captions})
        found = soft_positives(self.text(texts, "retrieval"), self.bank, self.cfg.mining.top_k).indices
        table = dict(zip(texts, found, strict=True))
        return [[table[c.text] for c in clip.captions] for clip in clips]

    def relevance(self) -> np.ndarray:
        """(K, M) bool: does a source entry contain the class, by ground truth. Embedded world only."""
        if not self.data.truth:
            raise ValueError("relevance needs ground-truth segments, which only the embedded world has")
        shown = [{s.label for s in clip.segments} for clip in self.data.source]
        return np.array([[bool(labels & set(self.data.truth[c])) for labels in shown] for c in self.data.classes])

    # --- adapt ------------------------------------------------------------------------------------------------------

    def shots(self, draw: int) -> list[Clip]:
        """The few real clips of one draw, `shots` per class."""
        rng = np.random.default_rng([self.cfg.seed, draw])
        return few_shot(self.data.pool, self.cfg.shots, rng, self.data.classes)

    def adapt(self, draw: int = 0, **alternatives) -> Artefact:
        """Adapted generator of one draw.

        Args:
            draw: number of the few-shot draw.
            **alternatives: fields of the adaptation to replace, e.g. method='naive' or an entry of `config.ABLATIONS`.
        """
        options = self.cfg.override(adapt=alternatives).adapt
        settings = {
            "adapt": options.model_dump(exclude={"save_every"}), "mining": self.cfg.mining.model_dump(), "draw": draw,
            "shots": self.cfg.shots, "seed": self.cfg.seed, "encoder": self.text.encoder.fingerprint,
            "data": self.cfg.data.model_dump(),
        }  # fmt: skip

        def compute(folder: Path) -> dict:
            clips = self.shots(draw)
            actions = self.data.labels(clips)
            fields = options.model_dump()
            fields["window_weight_rule"] = fields.pop("window_weight")
            source = lists = None
            if options.method == "kinemic":
                source, lists = self.source_stream, self.soft_positive_lists(clips)
            made = train.adapt(
                self.prior_model, self.diffusion, self._stream(clips, actions), source, lists,
                num_actions=len(self.data.classes), mic_dim=self.cfg.mining.dim, bank=self.cfg.mining.bank,
                temperature=self.cfg.mining.temperature, device=self.device, checkpoint=folder / "training.safetensors",
                progress=f"{options.method}, draw {draw}" if self.progress else "", **fields,
            )  # fmt: skip
            train.save_model(folder / "generator", "denoiser", made.model, made.model.settings)
            card = self._card(options, made.adapter is not None)
            (folder / "generator" / "README.md").write_text(card)
            if made.adapter is not None:
                checkpoints.save_adapter(folder / "adapter", made.adapter, card)
            if made.mic is not None:
                train.save_model(folder / "mic", "mic", made.mic, made.mic.settings)
            np.save(folder / "windows.npy", made.windows)
            (folder / "log.json").write_text(json.dumps(made.log))
            (folder / "training.safetensors").unlink(missing_ok=True)
            return {"loss": made.log[-1]["loss"]}

        return self.store.run("adapt", settings, compute, inputs=[self.prior, *self.data.origin], modules=TRAIN)

    def _card(self, options: AdaptSettings, adapter: bool) -> str:
        """Model card of a generator."""
        cfg = self.cfg
        name = Path(cfg.pretrain.checkpoint).name if cfg.pretrain.checkpoint else "trained on the source"
        made_from = f"{name} (key {self.prior.key})"
        # a checkpoint that does not name the world it was trained on may come from anywhere
        known = (self.prior.folder / "manifest.json").is_file() and "world" in self.prior.manifest
        simulated = cfg.source == cfg.target == "embedded" and (known or not cfg.pretrain.checkpoint)
        if options.method == "scratch":
            made_from = "none: trained from random weights"
        return checkpoints.generator_card(
            classes=self.data.classes, shots=cfg.shots, prior=made_from, encoder=self.text.encoder.name,
            source=Path(cfg.source).name, target=Path(cfg.target).name, settings=options.model_dump(),
            simulated=simulated, adapter=adapter,
        )  # fmt: skip

    # --- mine -------------------------------------------------------------------------------------------------------

    def mine(
        self,
        draw: int = 0,
        *,
        per_class: int,
        choose: str = "attention",
        adapted: Artefact | None = None,
        seed: int = 0,
    ) -> MinedWindows:
        """Windows for each class among its soft positives, with lengths drawn from the shots of that class.

        Args:
            draw: few-shot draw whose MIC and lengths are used.
            per_class: windows per class.
            choose: 'attention' (MIC), 'random' (uniform start) or 'oracle' (inside the ground-truth segment).
            adapted: an adaptation with a MIC; default the method's own.
            seed: of the draws.
        """
        if choose not in ("attention", "random", "oracle"):
            raise ValueError(f"choose is {choose!r}: one of attention, random, oracle")
        rng = np.random.default_rng([self.cfg.seed, draw, seed])
        clips, neighbours = self.shots(draw), self.retrieve()
        actions = self.data.labels(clips)
        rows, lengths, labels = [], [], []
        relevant = self.relevance() if choose == "oracle" else None
        for k in range(len(self.data.classes)):
            members = neighbours.indices[k]
            if relevant is not None:
                shown = members[relevant[k, members]]
                if not len(shown):
                    continue
                members = shown
            picked = rng.choice(members, size=per_class, replace=per_class > len(members))
            own = np.array([len(c) for c, a in zip(clips, actions, strict=True) if a == k])
            wanted = rng.choice(own, size=per_class)
            rows.append(picked)
            labels.append(np.full(per_class, k))
            lengths.append(np.minimum(wanted, [len(self.data.source[i]) for i in picked]))
        rows, lengths, labels = (np.concatenate(x) for x in (rows, lengths, labels))
        attention: list[np.ndarray] = []
        if choose == "attention":
            adapted = adapted or self.adapt(draw)
            free = adapted.manifest["settings"]["adapt"]["mic_condition"] == "free"
            S = self.diffusion.num_timesteps
            unique, back = np.unique(rows, return_inverse=True)
            found = train.mine(
                self.prior_model, train.load_model(adapted.folder / "mic", "mic").to(self.device), self.diffusion,
                self.source_stream, unique.tolist(), timesteps=(S // 10, 3 * S // 10, S // 2), condition_free=free,
            )  # fmt: skip
            attention = [found[i] for i in back]
            width = max(len(a) for a in attention)
            padded = torch.from_numpy(np.stack([np.pad(a, (0, width - len(a))) for a in attention]))
            total = torch.tensor([len(a) for a in attention])
            start = train.best_window(padded, total, torch.from_numpy(lengths)).numpy()
        else:
            start = np.zeros(len(rows), np.int64)
            for i, (row, n, k) in enumerate(zip(rows, lengths, labels, strict=True)):
                clip = self.data.source[row]
                if choose == "oracle":
                    scores = self._overlaps(row, n, k)
                    start[i] = rng.choice(np.flatnonzero(scores == scores.max()))
                    continue
                start[i] = rng.integers(len(clip) - n + 1)
        return MinedWindows(rows, start, lengths, labels, attention)

    def _overlaps(self, row: int, length: int, action: int) -> np.ndarray | None:
        """IoU with the class's true segments of the window at every start of a source entry; None without segments."""
        clip, labels = self.data.source[row], self.data.truth.get(self.data.classes[action], ())
        spans = [(s.start, s.end) for s in clip.segments if s.label in labels]
        every = np.arange(len(clip) - length + 1)
        return np.max([metrics.window_iou(every, length, a, b) for a, b in spans], axis=0) if spans else None

    def window_quality(self, windows: MinedWindows) -> dict[str, np.ndarray]:
        """Per window: IoU with the truth, the best and the mean a window of that length could have. NaN where the
        source entry does not contain the class (a wrong retrieval)."""
        out = {name: np.full(len(windows.rows), np.nan) for name in ("iou", "oracle", "random")}
        for i, (row, start, n, k) in enumerate(
            zip(windows.rows, windows.start, windows.length, windows.action, strict=True)
        ):
            scores = self._overlaps(row, n, k)
            if scores is None:
                continue
            out["iou"][i], out["oracle"][i], out["random"][i] = scores[start], scores.max(), scores.mean()
        return out

    # --- synthesize -------------------------------------------------------------------------------------------------

    def synthesize(self, adapted: Artefact | None, draw: int = 0) -> Artefact:
        """Labelled synthetic clips, balanced over the classes, with lengths drawn from the shots.

        Args:
            adapted: the generator; None samples the prior itself by caption (zero-shot).
            draw: few-shot draw whose lengths are used.
        """
        cfg, s = self.cfg, self.cfg.synthesis
        settings = {"synthesis": s.model_dump(), "diffusion": cfg.diffusion.model_dump(), "draw": draw,
                    "shots": cfg.shots, "seed": cfg.seed, "zero_shot": adapted is None,
                    "code": code_of(Lab.synthesize)}  # fmt: skip

        def compute(folder: Path) -> dict:
            if adapted is None:
                model, condition, diffusion = self.prior_model, "text", self.diffusion
            else:
                options = adapted.manifest["settings"]["adapt"]
                diffusion = Diffusion(options["num_timesteps"]) if options["num_timesteps"] else self.diffusion
                model = train.load_model(adapted.folder / "generator").to(self.device)
                condition = options["condition"]
            rng = np.random.default_rng([s.seed, draw])
            clips = self.shots(draw)
            actions = self.data.labels(clips)
            K = len(self.data.classes)
            action = np.repeat(np.arange(K), s.per_class)
            seen = [np.array([len(c) for c, a in zip(clips, actions, strict=True) if a == k]) for k in range(K)]
            lengths = np.concatenate([rng.choice(seen[k], size=s.per_class) for k in range(K)])
            text = self.text([self.data.captions[c] for c in self.data.classes], "condition")
            generator = torch.Generator(self.device).manual_seed(s.seed + draw)
            order = np.argsort(lengths, kind="stable")  # clips of similar length share a batch
            features: list[np.ndarray | None] = [None] * len(order)
            for first in range(0, len(order), s.batch):
                rows = order[first : first + s.batch]
                a = torch.from_numpy(action[rows])
                x = diffusion.sample(
                    model, torch.from_numpy(lengths[rows]), motion.NUM_FEATURES,
                    text=torch.from_numpy(text[action[rows]]).to(self.device) if "text" in condition else None,
                    action=a.to(self.device) if "action" in condition else None,
                    guidance_scale=cfg.diffusion.guidance_scale, sampler=cfg.diffusion.sampler,
                    steps=cfg.diffusion.sampling_steps or None, generator=generator,
                )  # fmt: skip
                x = self.data.normalizer.denormalize(x.cpu().numpy())
                for row, one in zip(rows, x, strict=True):
                    own = one[: lengths[row]].astype(np.float32)
                    features[row] = motion.reconcile(own) if s.reconcile else own
            np.savez(
                folder / "clips.npz", features=np.concatenate(features), lengths=lengths, action=action,
                classes=self.data.classes, captions=[self.data.captions[c] for c in self.data.classes],
            )  # fmt: skip
            return {"clips": len(lengths)}

        inputs = [adapted or self.prior, *self.data.origin]
        return self.store.run("synthesize", settings, compute, inputs=inputs, modules=TRAIN)

    def load_clips(self, synthetic: Artefact) -> list[Clip]:
        """Synthetic clips as `Clip`s, named `synth_000000`, ..."""
        with np.load(synthetic.folder / "clips.npz") as stored:
            pieces = np.split(stored["features"], np.cumsum(stored["lengths"])[:-1])
            return [Clip(f"synth_{i:06d}", x, action=self.data.classes[a])
                    for i, (x, a) in enumerate(zip(pieces, stored["action"], strict=True))]  # fmt: skip

    # --- evaluate ---------------------------------------------------------------------------------------------------

    def training_set(self, clips: Sequence[Clip], synthetic: bool = False) -> TrainingSet:
        """Clips as the classifier takes them."""
        return TrainingSet([c.joints for c in clips], self.data.labels(clips), np.full(len(clips), synthetic))

    def window_set(self, windows: MinedWindows) -> TrainingSet:
        """Windows as synthetic training clips, features recomputed from their joints."""
        joints = [
            motion.decode(motion.recut(self.data.source[r].features, int(s), int(n))).astype(np.float32)
            for r, s, n in zip(windows.rows, windows.start, windows.length, strict=True)
        ]
        return TrainingSet(joints, windows.action, np.ones(len(joints), bool))

    def _classifier(
        self,
        training: TrainingSet,
        seed: int,
        augment: str,
        settings: HarSettings,
        callback: Callable[[int, har.Classifier], None] | None = None,
        classes: Sequence[str] | None = None,
    ) -> har.Classifier:
        h = settings
        drawn = {"balance": True, "sources": training.synthetic.astype(int)}
        if h.budget == "epochs":  # passes over the set as it is
            drawn = {}
        return har.fit(
            training.joints, training.labels, len(classes or self.data.classes), updates=_updates(h, training),
            batch_size=h.batch, lr=h.lr, weight_decay=h.weight_decay, optimizer=h.optimizer, clip_len=h.clip_len,
            channels=h.channels, depth=h.depth, scheme=h.scheme, augment=augment, seed=seed, device=self.device,
            callback=callback, classes=classes, **drawn,
        )  # fmt: skip

    def _predictions(self, training: TrainingSet, seed: int, augment: str, labels: np.ndarray) -> np.ndarray:
        """(N,) classes of the test clips, by the last state of a classifier or by the one that scores best on them."""
        h, joints = self.cfg.har, [c.joints for c in self.data.test]
        if h.report == "last":
            return self._classifier(training, seed, augment, h).predict(joints).argmax(1)
        every, best = max(1, _updates(h, training) // har.EPOCHS), []

        def look(update: int, classifier: har.Classifier) -> None:
            if update % every == 0:
                seen = classifier.predict(joints).argmax(1)
                if not best or (seen == labels).sum() > (best[0] == labels).sum():
                    best[:] = [seen]

        self._classifier(training, seed, augment, h, look)
        return best[0]

    def evaluate(self, training: TrainingSet, augment: str | None = None) -> dict[str, np.ndarray]:
        """Train the classifier on one training set and test it on held-out subjects, once per classifier seed.

        Every training set gets the same number of updates, and the last one is what counts, unless the experiment's
        `har.budget` and `har.report` say otherwise.

        Args:
            training: clips and labels.
            augment: 'none' or 'standard'; default the experiment's.

        Returns:
            'top1' (seeds,) shares, 'predictions' (seeds, N) classes, 'labels' (N,).
        """
        if not self.data.test:
            raise ValueError("this target has no test clips of other subjects, so there is no accuracy to report")
        augment = augment or self.cfg.har.augment
        digest = hashlib.sha256()
        for joints in training.joints:
            digest.update(np.ascontiguousarray(joints, np.float32).tobytes())
        settings = {"har": self.cfg.har.model_dump(exclude={"referee_updates"}), "augment": augment,
                    "clips": digest.hexdigest(), "labels": training.labels.tolist(),
                    "synthetic": training.synthetic.tolist(),
                    "code": code_of(Lab._classifier, Lab._predictions, _updates)}  # fmt: skip

        def compute(folder: Path) -> dict:
            labels = self.data.labels(self.data.test)
            seeds = range(self.cfg.har.seeds)
            predictions = np.stack([self._predictions(training, seed, augment, labels) for seed in seeds])
            np.savez(folder / "predictions.npz", predictions=predictions, labels=labels)
            return {"top1": (predictions == labels).mean(1).tolist()}

        done = self.store.run("evaluate", settings, compute, inputs=self.data.origin, modules=("motion", "har"))
        with np.load(done.folder / "predictions.npz") as stored:
            return {**stored, "top1": (stored["predictions"] == stored["labels"]).mean(1)}

    @cached_property
    def referee(self) -> har.Classifier:
        """Classifier trained on every pool clip: it judges synthetic motion and gives the features of distances."""
        return self._judge("pool", lambda: (self.training_set(self.data.pool), self.data.classes))

    @cached_property
    def source_referee(self) -> har.Classifier:
        """Classifier trained on the source entries that show one action, with the names of the actions as classes.

        It never saw the target, so it judges what the prior draws by the prior's own domain. Embedded world only.
        """
        if not self.data.truth:
            raise ValueError("a referee of the source needs ground-truth segments, which only the embedded world has")

        def training() -> tuple[TrainingSet, Sequence[str]]:
            single = [(clip, shown(clip)[0]) for clip in self.data.source if len(set(shown(clip))) == 1]
            classes = sorted({name for _, name in single})
            labels = np.array([classes.index(name) for _, name in single])
            return TrainingSet([clip.joints for clip, _ in single], labels, np.zeros(len(single), bool)), classes

        return self._judge("source", training)

    def _judge(self, side: str, training: Callable[[], tuple[TrainingSet, Sequence[str]]]) -> har.Classifier:
        """Classifier of a set and its classes, trained once.

        Placement and budget are the corrected ones whatever the experiment takes: a judge must not change with what it
        judges.
        """
        h = self.cfg.har
        corrected = {"scheme": "root", "budget": "updates", "updates": h.referee_updates or h.updates}
        judge = h.model_copy(update=corrected)
        settings = {"har": judge.model_dump(exclude={"report", "referee_updates"}), "side": side,
                    "code": code_of(Lab._classifier, Lab.source_referee.func, shown)}  # fmt: skip

        def compute(folder: Path) -> dict:
            clips, classes = training()
            self._classifier(clips, 0, "standard", judge, classes=classes).save(folder / "referee")
            return {}

        done = self.store.run("referee", settings, compute, inputs=self.data.origin, modules=("motion", "har"))
        return har.Classifier.load(done.folder / "referee")

    def judge(self, training: TrainingSet, real: Sequence[Clip] | None = None, seed: int = 0) -> Mapping[str, float]:
        """Intrinsic quality of synthetic clips.

        Args:
            training: synthetic clips.
            real: clips to compare with; default the test set, or the pool where there is none.
            seed: of the pairs behind diversity.

        Returns:
            recognised (share the referee gives the intended class), frechet, kid, diversity, multimodality, speed
            (mean root-relative joint speed, m/s) and n.
        """
        real = real or self.data.test or self.data.pool
        rng = np.random.default_rng(seed)
        made, wanted = self.referee.embed(training.joints), self.referee.embed([c.joints for c in real])
        hits = self.referee.predict(training.joints).argmax(1) == training.labels
        return {
            "recognised": float(hits.mean()),
            "frechet": metrics.frechet_distance(wanted, made),
            "kid": metrics.kernel_distance(wanted, made),
            "diversity": metrics.diversity(made, rng),
            "multimodality": metrics.multimodality(made, training.labels, rng),
            "speed": float(np.mean([metrics.joint_speed(j - j[:, :1]).mean() for j in training.joints])),
            "n": len(training.joints),
        }
