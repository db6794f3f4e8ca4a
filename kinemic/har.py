r"""Action recognition: does a set of clips teach a classifier the actions of held-out people?

The recogniser is ST-GCN on joint positions. A block mixes joints along the skeleton, then frames along time,

.. math:: y_w = \sum_k \sum_v (A_k \odot M_k)_{vw} (W_k x_v + b_k),

with three fixed neighbourhoods :math:`A_k` (the joint itself, inward, outward) and learned edge weights :math:`M_k`.
Training sets are compared after the same number of updates, and the last state is the one that is reported.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.nn import functional as F

from kinemic.motion import BONES, MIRROR_PAIRS, NUM_JOINTS

__all__ = ["EPOCHS", "Classifier", "STGCN", "adjacency", "epoch_updates", "fit", "normalise", "uniform_sample"]

SCHEMES = ("root", "pelvis", "reference", "none")
YAW_JITTER = math.radians(15.0)  # 'standard' augmentation: largest turn about the vertical ...
EPOCHS, REPEATS = 20, 4  # of the reference's protocol: 20 times through a list that names every clip four times
SCALE_JITTER = 0.1  # ... and largest relative change of body size
_FORMAT = "kinemic.har/1"
_MIRRORED = np.arange(NUM_JOINTS)
for _left, _right in MIRROR_PAIRS:
    _MIRRORED[[_left, _right]] = _right, _left


def adjacency() -> Tensor:
    """Column-normalised skeleton graph in three subsets: self, inward, outward.

    Returns:
        (3, 22, 22) float32, entry [k, v, w] is the weight of joint v in the new value of joint w. The subsets have
        22, 36 and 6 non-zero entries.

    Source: reference implementation. Distances to the pelvis are known up to one hop only, so beyond the hips and the
    first spine joint both directions of a bone fall into the inward subset; kept, as published numbers depend on it.
    """
    near = np.eye(NUM_JOINTS)
    for parent, child in BONES:
        near[parent, child] = near[child, parent] = 1.0
    hops = np.where(near[:, 0] > 0, 1, NUM_JOINTS)  # "farther than one hop" is one value
    hops[0] = 0
    weight = near / near.sum(axis=0)
    itself = np.eye(NUM_JOINTS, dtype=bool)
    outward = hops[:, None] < hops[None, :]
    subsets = [itself, ~itself & ~outward, ~itself & outward]
    return torch.tensor(np.stack([weight * subset for subset in subsets]), dtype=torch.float32)


class _Block(nn.Module):
    """Graph convolution, then a temporal convolution of 9 frames, with a residual; works on (V, B, T, C)."""

    def __init__(self, inputs: int, outputs: int, stride: int, residual: bool):
        super().__init__()
        self.outputs = outputs
        self.register_buffer("graph", adjacency(), persistent=False)
        self.edges = nn.Parameter(torch.ones(3, NUM_JOINTS, NUM_JOINTS))
        self.mix = nn.Linear(inputs, 3 * outputs)
        self.mix_norm = nn.BatchNorm1d(outputs)
        self.time = nn.Conv2d(outputs, outputs, (1, 9), (1, stride), (0, 4))
        self.time_norm = nn.BatchNorm1d(outputs)
        self.has_residual = residual
        self.shortcut = self.shortcut_norm = None
        if residual and (inputs != outputs or stride != 1):
            self.shortcut = nn.Conv2d(inputs, outputs, 1, (1, stride))
            self.shortcut_norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        joints, batch, frames, inputs = x.shape
        graph = (self.graph * self.edges).transpose(1, 2)  # (3, W, V)
        # Joints are the outermost axis: one matrix product spreads all clips and frames over the three subsets.
        # Spreading before mixing is the same sum, on fewer channels; only the bias has to be spread by itself.
        spread = (graph.reshape(-1, joints) @ x.reshape(joints, -1)).view(3, -1, inputs)  # (3, W*B*T, C)
        weight = self.mix.weight.view(3, self.outputs, inputs).transpose(1, 2)
        bias = torch.einsum("kwv,ko->wo", graph, self.mix.bias.view(3, self.outputs))
        y = torch.bmm(spread, weight).sum(0).view(joints, batch * frames, self.outputs) + bias[:, None]
        y = F.relu(self.mix_norm(y.flatten(0, 1))).view(joints, batch, frames, -1)
        y = _along_time(self.time, self.time_norm, y)
        if self.shortcut is not None:
            y = y + _along_time(self.shortcut, self.shortcut_norm, x)
        elif self.has_residual:
            y = y + x
        return F.relu(y)


def _along_time(conv, norm, x):
    """Convolve (V, B, T, C) over T and normalise; the view is 'channels last', the fast layout on CPUs."""
    joints, batch = x.shape[:2]
    y = conv(x.flatten(0, 1).transpose(1, 2).unsqueeze(2))  # (V*B, C, 1, T)
    y = y.squeeze(2).transpose(1, 2).contiguous()
    frames = y.shape[1]
    return norm(y.view(joints * batch * frames, -1)).view(joints, batch, frames, -1)


class STGCN(nn.Module):
    """Spatial-temporal graph convolutional network on joint positions.

    Args:
        num_classes: K, at least 1.
        channels: width of the first stage; it doubles at blocks `depth // 2` and `4 * depth // 5` (counted from one),
            where time is halved too.
        depth: number of blocks, at least 4; 10 gives the published layout (doubling at blocks 5 and 8).

    Source: reference implementation (ST-GCN with learned edge importance, one person, no dropout): 3,079,164
    parameters before the classifier at channels=64, depth=10. The order of sums inside a block differs, the result
    does not.
    """

    def __init__(self, num_classes: int, channels: int = 64, depth: int = 10):
        super().__init__()
        if num_classes < 1 or channels < 1 or depth < 4:
            raise ValueError(f"num_classes={num_classes}, channels={channels}, depth={depth}: need at least 1, 1, 4")
        self.settings = dict(num_classes=num_classes, channels=channels, depth=depth)
        self.input_norm = nn.BatchNorm1d(NUM_JOINTS * 3)
        self.blocks = nn.ModuleList()
        width, wider = 3, channels
        for block in range(1, depth + 1):
            grows = block in (depth // 2, 4 * depth // 5)
            wider *= 2 if grows else 1
            self.blocks.append(_Block(width, wider, 2 if grows else 1, residual=block > 1))
            width = wider
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> Tensor:
        """Mean of the last block over frames and joints.

        Args:
            x: (B, T, 22, 3) float32, positions in metres.

        Returns:
            (B, 4 * channels), i.e. 256 for the published size.
        """
        if x.ndim != 4 or x.shape[2:] != (NUM_JOINTS, 3):
            raise ValueError(f"joints have shape {tuple(x.shape)}, expected (B, T, {NUM_JOINTS}, 3)")
        batch, frames = x.shape[:2]
        x = self.input_norm(x.reshape(batch * frames, -1)).view(batch, frames, NUM_JOINTS, 3)
        x = x.permute(2, 0, 1, 3).contiguous()  # (V, B, T, C)
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of positions (B, T, 22, 3)."""
        return self.head(self.features(x))


def normalise(joints: np.ndarray, scheme: str = "root") -> np.ndarray:
    """Place a clip before it is classified.

    Args:
        joints: (T, 22, 3) metres, y up, facing +z in the first frame.
        scheme: 'root' puts the pelvis above the origin in every frame and at height 0 in frame 0, and turns nothing:
            skeletons estimated from video carry no travel, so travel would only tell synthetic clips from real ones.
            'pelvis' shifts the whole clip so that the pelvis of frame 0 is the origin. Neither aligns the trunk: clips
            already stand in gravity's frame and face +z, and a lean or a lying body is information. 'reference' is the
            published pipeline: origin at the last joint (right wrist), joint 0 -> 1 turned onto +z, then joint 4 -> 8
            onto +x, indices that mean spine and shoulders on a Kinect skeleton but hip and legs here. 'none' changes
            nothing.

    Returns:
        (T, 22, 3) float32.

    Raises:
        ValueError: unknown scheme, wrong shape, no frame, a value that is not finite.

    Source: reference implementation, whose alignment was written for 25 Kinect joints; 'root' and 'pelvis'
        are our corrections.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}, expected one of {', '.join(SCHEMES)}")
    joints = _checked(joints, "joints")
    if scheme == "root":
        joints = joints - joints[:, :1] * [1, 0, 1] - joints[0, 0] * [0, 1, 0]
    elif scheme == "pelvis":
        joints = joints - joints[0, 0]
    elif scheme == "reference":
        joints = joints - joints[0, -1]
        for (start, end), axis in (((0, 1), (0.0, 0.0, 1.0)), ((4, 8), (1.0, 0.0, 0.0))):
            bone = joints[0, end] - joints[0, start]
            normal = np.cross(bone, axis)
            size = np.linalg.norm(normal)
            if size > 1e-6:
                angle = np.arctan2(size, bone @ np.asarray(axis))
                joints = joints @ Rotation.from_rotvec(normal / size * angle).as_matrix().T
    return joints.astype(np.float32)


def uniform_sample(length: int, clip_len: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Frames that stand for a clip: all of it, in order, whatever its length.

    Args:
        length: frames of the clip, at least 1.
        clip_len: frames wanted, at least 1.
        rng: draws the frames while training; None gives the fixed frames of the test.

    Returns:
        (clip_len,) int64 in [0, length). A short clip is looped (from a random frame, or from 0). A clip shorter than
        twice clip_len drops random frames; a longer one gives one random frame from each of clip_len equal bins.
        Without rng the two long cases take the middle of each bin.

    Source: reference implementation; its test draws random frames with a fixed seed where we take the middle.
    """
    if length < 1 or clip_len < 1:
        raise ValueError(f"length is {length} and clip_len {clip_len}, both must be at least 1")
    if length < clip_len:
        first = 0 if rng is None else rng.integers(length)
        return (first + np.arange(clip_len)) % length
    if rng is None:
        return (2 * np.arange(clip_len) + 1) * length // (2 * clip_len)
    if length < 2 * clip_len:
        skipped = np.zeros(clip_len + 1, dtype=np.int64)
        skipped[rng.choice(clip_len + 1, length - clip_len, replace=False)] = 1
        return np.arange(clip_len) + np.cumsum(skipped)[:-1]
    edges = np.arange(clip_len + 1) * length // clip_len
    return rng.integers(edges[:-1], edges[1:])


def epoch_updates(count: int, batch_size: int) -> int:
    """Updates of the published protocol: 20 epochs over a list that names each of `count` clips four times.

    Source: reference implementation: 40 updates on 30 clips in batches of 64, but 1480 on 1182. Sets of different
    sizes are not comparable under it.
    """
    return EPOCHS * math.ceil(REPEATS * count / batch_size)


class Classifier:
    """A network with what it needs to read a clip: placement, frames per clip, names of the classes.

    Attributes:
        model: the `STGCN`.
        settings: clip_len, scheme and classes (names, or None).
        losses: cross-entropy per update of `fit`; empty after `load`.
    """

    def __init__(self, model: STGCN, *, clip_len: int, scheme: str = "root", classes: Sequence[str] | None = None):
        if classes is not None and len(classes) != model.settings["num_classes"]:
            raise ValueError(f"{len(classes)} class names for {model.settings['num_classes']} classes, need one each")
        self.model = model
        self.settings = dict(clip_len=clip_len, scheme=scheme, classes=None if classes is None else list(classes))
        self.losses: list[float] = []

    def predict(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Logits (N, K) float32 of N clips (T_i, 22, 3); a clip's row does not depend on the other clips."""
        return self._run(self.model, clips)

    def embed(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Features (N, 4 * channels) float32 of N clips (T_i, 22, 3), for distances between sets of clips."""
        return self._run(self.model.features, clips)

    def _run(self, function, clips, batch_size=64):
        self.model.eval()
        device = next(self.model.parameters()).device
        placed = _placed(clips, self.settings["scheme"])
        frames = np.stack([clip[uniform_sample(len(clip), self.settings["clip_len"])] for clip in placed])
        with torch.inference_mode():
            parts = [function(part.to(device)).cpu() for part in torch.from_numpy(frames).split(batch_size)]
        return torch.cat(parts).numpy()

    def save(self, path: str | Path) -> None:
        """Write weights and settings to one safetensors file, complete or not at all."""
        path = Path(path)
        text = json.dumps({"model": self.model.settings, "classifier": self.settings})
        weights = {name: value.contiguous().cpu() for name, value in self.model.state_dict().items()}
        partial = path.with_name(path.name + ".partial")
        save_file(weights, partial, metadata={"format": _FORMAT, "settings": text})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or was not written by `save`.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such classifier; train one with fit() and save() it")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: not a complete safetensors file ({reason}); delete it and train again") from None
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path}: not a classifier of this package (no {_FORMAT!r} in its header); train one")
        try:
            settings = json.loads(metadata["settings"])
            model = STGCN(**settings["model"])
            model.load_state_dict(weights)
            return cls(model, **settings["classifier"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: settings and weights do not fit together ({reason}); train again") from None


def fit(
    clips: Sequence[np.ndarray],
    labels: Sequence[int],
    num_classes: int,
    *,
    updates: int,
    seed: int,
    batch_size: int = 64,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    optimizer: str = "sgd",
    clip_len: int = 100,
    channels: int = 64,
    depth: int = 10,
    scheme: str = "root",
    augment: str = "none",
    mirror: bool = False,
    balance: bool = False,
    sources: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
    callback: Callable[[int, Classifier], None] | None = None,
) -> Classifier:
    """Train a classifier for a given number of updates and return its last state.

    Args:
        clips: N arrays (T_i, 22, 3), metres, y up.
        labels: (N,) int in [0, num_classes).
        num_classes: K.
        updates: gradient steps. Required, because sets of different sizes are comparable only at equal updates.
        seed: of weights, batches, frames and augmentation; equal seeds give equal weights on one machine.
        batch_size: clips per update.
        lr: first learning rate; falls to 0 along a half cosine, per update.
        weight_decay: on every parameter, as in the reference.
        optimizer: 'sgd' (Nesterov, momentum 0.9) or 'adamw' (choose lr near 1e-3).
        clip_len: frames the network sees, see `uniform_sample`.
        channels, depth: size of the `STGCN`.
        scheme: placement, see `normalise`.
        augment: 'none' as in the reference, or 'standard': turn by up to 15 degrees about the vertical, scale by up to
            10 %.
        mirror: swap left and right of every second clip; only where no class is defined by its side.
        balance: draw classes equally often, whatever their number of clips.
        sources: (N,) origin of each clip, e.g. 0 real and 1 synthetic; each origin is drawn equally often.
        classes: names, kept with the classifier.
        device: where the network is trained.
        progress: show a bar.
        callback: called as callback(update, classifier) after each update, from 1; may predict, e.g. for a curve.

    Raises:
        ValueError: no clips, a bad clip or label (the message names its index), an unknown option, a diverged loss.

    Source: reference implementation (optimiser, schedule, batch size). It trains for equal epochs and reports the
    best epoch on the test set; we train for equal updates and report the last.
    """
    labels = _checked_labels(labels, len(clips), num_classes)
    placed = _placed(clips, scheme)
    if updates < 1 or batch_size < 1:
        raise ValueError(f"updates is {updates} and batch_size {batch_size}, both must be at least 1")
    if augment not in ("none", "standard") or optimizer not in ("sgd", "adamw"):
        raise ValueError(f"augment={augment!r}, optimizer={optimizer!r}: expected none or standard, sgd or adamw")
    if scheme == "reference" and (augment != "none" or mirror):
        raise ValueError("scheme 'reference' moves the vertical axis, so clips cannot be turned or mirrored after it")

    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):  # layers are initialised from the global generator: lend it our seed
        torch.manual_seed(seed)
        model = STGCN(num_classes, channels, depth)
    model.to(device)
    classifier = Classifier(model, clip_len=clip_len, scheme=scheme, classes=classes)
    if optimizer == "sgd":
        stepper = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    else:
        stepper = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(stepper, lambda u: 0.5 * (1 + math.cos(math.pi * u / updates)))
    batches = _batches(_weights(labels, balance, sources), len(placed), batch_size, rng)
    steps = range(1, updates + 1)
    if progress:
        from tqdm.auto import tqdm

        steps = tqdm(steps, desc="classifier")
    for update in steps:
        chosen = next(batches)
        x = np.stack([placed[i][uniform_sample(len(placed[i]), clip_len, rng)] for i in chosen])
        x = torch.from_numpy(_augmented(x, augment, mirror, rng)).to(device)
        model.train()
        loss = F.cross_entropy(model(x), torch.from_numpy(labels[chosen]).to(device))
        stepper.zero_grad(set_to_none=True)
        loss.backward()
        stepper.step()
        schedule.step()
        classifier.losses.append(loss.item())
        if not math.isfinite(classifier.losses[-1]):
            raise ValueError(f"the loss is {classifier.losses[-1]} at update {update}: lower lr (now {lr})")
        if callback is not None:
            callback(update, classifier)
    model.eval()
    return classifier


def _checked(joints, name):
    """One clip as float64 (T, 22, 3), or a ValueError that calls it by name."""
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (NUM_JOINTS, 3) or len(joints) == 0:
        raise ValueError(f"{name}: shape {joints.shape}, expected (T, {NUM_JOINTS}, 3) with T >= 1")
    if not np.isfinite(joints).all():
        row = int(np.argwhere(~np.isfinite(joints))[0, 0])
        raise ValueError(f"{name}: a value that is not finite in frame {row}; repair or leave out the clip")
    return joints


def _placed(clips, scheme):
    if len(clips) == 0:
        raise ValueError("no clips, expected at least one")
    return [normalise(_checked(clip, f"clip {index}"), scheme) for index, clip in enumerate(clips)]


def _checked_labels(labels, count, num_classes):
    labels = np.asarray(labels)
    if count == 0:
        raise ValueError("no clips, expected at least one")
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}, expected {count} integers, one per clip")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise ValueError(f"clip {outside[0]}: label {labels[outside[0]]}, expected 0 to {num_classes - 1}")
    return labels.astype(np.int64)


def _weights(labels, balance, sources):
    """Probability of each clip (N,), or None where all clips are drawn equally often."""
    if not balance and sources is None:
        return None
    sources = np.zeros(len(labels), dtype=np.int64) if sources is None else np.asarray(sources)
    if sources.shape != labels.shape:
        raise ValueError(f"sources have shape {sources.shape}, expected {labels.shape}, one per clip")
    origins, origin = np.unique(sources, return_inverse=True)
    cell = (labels if balance else 0) * len(origins) + origin
    weights = 1.0 / np.bincount(cell)[cell]
    if balance:  # a class that lacks one origin still gets its full share
        weights /= np.bincount(labels, weights)[labels]
    return weights / weights.sum()


def _batches(weights, count, batch_size, rng) -> Iterator[np.ndarray]:
    """Endless batches of indices: weighted draws, or one shuffled pass over the clips after another."""
    queue = np.empty(0, dtype=np.int64)
    while True:
        if weights is not None:
            yield rng.choice(count, batch_size, p=weights)
            continue
        while len(queue) < batch_size:
            queue = np.concatenate([queue, rng.permutation(count)])
        yield queue[:batch_size]
        queue = queue[batch_size:]


def _augmented(x, augment, mirror, rng):
    """(B, T, 22, 3) float32 with one random turn, size and side per clip."""
    if mirror:
        swap = rng.random(len(x)) < 0.5
        x[swap] = x[swap][:, :, _MIRRORED] * np.array([-1, 1, 1], dtype=np.float32)
    if augment == "standard":
        yaw = rng.uniform(-YAW_JITTER, YAW_JITTER, len(x))
        size = rng.uniform(1 - SCALE_JITTER, 1 + SCALE_JITTER, len(x))
        turn = Rotation.from_rotvec(yaw[:, None] * [0.0, 1.0, 0.0]).as_matrix() * size[:, None, None]
        x = x @ turn.transpose(0, 2, 1)[:, None].astype(np.float32)
    return x
