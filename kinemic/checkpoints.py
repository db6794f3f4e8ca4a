"""Models in the formats of other programs: MDM's checkpoints, and adapters as `peft` keeps them.

Our own checkpoints (`train.save_model`) are a folder with `model.safetensors` and `config.json`. Here are the doors to
others: a published text-to-motion prior comes in and goes out under its own key names, a trained adapter goes out as a
folder that `peft` reads, with a card that says what it is.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinemic._torchvision import ensure_torchvision
from kinemic.denoiser import Denoiser, sinusoidal_table

__all__ = ["find_mdm", "generator_card", "load_adapter", "load_mdm", "save_adapter", "save_mdm"]

# ours -> MDM's; per layer the three input projections are one tensor there, in the order q, k, v
PARTS = {
    "input_proj": "input_process.poseEmbedding",
    "time_mlp": "embed_timestep.time_embed",
    "embed_text": "embed_text",
    "output_proj": "output_process.poseFinal",
}
LAYER = "seqTransEncoder.layers."
LAYER_PARTS = {"out_proj": "self_attn.out_proj", **{n: n for n in ("linear1", "linear2", "norm1", "norm2")}}
TABLES = ("sequence_pos_encoder.pe", "embed_timestep.sequence_pos_encoder.pe")
TABLE_ROWS = 5000
HEADS = 4  # fixed in MDM's code, in no file
ARGUMENTS = {"arch": "trans_enc", "noise_schedule": "cosine", "text_encoder_type": "clip"}


# --- MDM ------------------------------------------------------------------------------------------------------------


def find_mdm(path: str | Path) -> Path | None:
    """The `.pt` file that a path names: itself, or the only `model*.pt` of a folder; None for our own checkpoints.

    Raises:
        ValueError: the folder holds several.
    """
    path = Path(path)
    if path.suffix == ".pt":
        return path
    if (path / "config.json").is_file():
        return None
    found = sorted(path.glob("model*.pt"))
    if len(found) > 1:
        raise ValueError(f"{path}: holds {len(found)} checkpoints ({', '.join(p.name for p in found)}); name one file")
    return found[0] if found else None


def load_mdm(path: str | Path, *, heads: int = HEADS) -> tuple[Denoiser, dict[str, Any]]:
    """Published MDM checkpoint as our denoiser.

    Averaged weights (`model_avg`) are taken where the file has them. Weights of the CLIP tower (`clip_model.*`) are
    ignored: the encoder is loaded by itself. Sizes are read from the tensors.

    Args:
        path: the `.pt` file, or the folder that holds one; `args.json` stands beside it.
        heads: attention heads, which no tensor tells.

    Returns:
        The denoiser in evaluation mode, and the arguments it was trained with.

    Raises:
        FileNotFoundError: the file or its `args.json` is missing.
        ValueError: a truncated file, pickled code, another architecture, or keys that are missing, unknown or of
            another shape; all of them are named.

    Source: MDM (Tevet et al. 2023), `humanml_enc_512_50steps`, arch 'trans_enc'.
    """
    path = find_mdm(path) or Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; give an MDM file (model*.pt) or the folder that holds it")
    args = _arguments(path.with_name("args.json"))
    state = _read(path)
    model = _sized(path, state, heads, float(args.get("dropout", 0.1)))
    wanted = _to_mdm(model)
    state = {k: v for k, v in state.items() if not k.startswith("clip_model.")}
    for key in TABLES:  # buffers that follow from a formula: some versions write them, all can do without
        if key in state:
            wanted[key] = wanted[key][: len(state[key])]
        else:
            wanted.pop(key)
    faults = [f"{k} is missing" for k in wanted if k not in state]
    faults += [f"{k} is unknown" for k in state if k not in wanted]
    for key in wanted.keys() & state.keys():
        found, expected = state[key], wanted[key]
        if found.shape != expected.shape:
            faults.append(f"{key} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
        elif not bool(torch.isfinite(found).all()):
            faults.append(f"{key} holds NaN or infinite values")
        # the last rows of a long table differ by rounding, as their angles are large
        elif key in TABLES and float((found - expected).abs().max()) > 2e-3:
            faults.append(f"{key} is not the sinusoidal table")
    if faults:
        raise ValueError(f"{path}: not the weights of MDM's text-to-motion encoder: {'; '.join(sorted(faults))}")
    model.load_state_dict(_from_mdm(state))
    return model.eval(), args


def save_mdm(folder: str | Path, model: Denoiser, args: Mapping[str, Any], name: str = "model000000000.pt") -> Path:
    """Write a denoiser under MDM's key names, with `args.json`; `load_mdm` gives the same weights back, bit by bit.

    Args:
        folder: made if it is missing.
        model: one frame per token and no knots of text, since MDM knows neither; an action table is
            written along.
        args: what `load_mdm` returned, or at least `diffusion_steps`; sizes are filled in.
        name: of the file.

    Returns:
        The file's path.

    Raises:
        ValueError: the model has what MDM lacks.
    """
    plain = {"patch": 1, "text_knots": 0}
    other = [f"{name} {model.settings[name]}" for name, value in plain.items() if model.settings[name] != value]
    if other:
        raise ValueError(f"a model with {', '.join(other)} has no MDM layout: train one with {plain}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().clone() for k, v in _to_mdm(model).items()}
    torch.save({"model": state, "model_avg": state}, folder / f"{name}.partial")
    (folder / f"{name}.partial").replace(folder / name)
    s = model.settings
    sizes = {"latent_dim": s["dim"], "layers": s["layers"]}
    text = json.dumps({**ARGUMENTS, **sizes, **args}, indent=1, sort_keys=True)
    (folder / "args.json").write_text(text + "\n")
    return folder / name


def _read(path: Path) -> dict[str, Tensor]:
    mend = "fetch it again, the download may have been interrupted"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # what torch found, after its general advice; a byte that is no pickle instruction is an 'operand'
        if re.search("global|class|reduce|build", str(error).rpartition("error:")[2], re.IGNORECASE):
            raise ValueError(
                f"{path}: holds pickled code, which is refused because loading would run it; "
                "save plain tensors with torch.save(model.state_dict(), FILE)"
            ) from None
        raise ValueError(f"{path}: not a whole file of torch.save; {mend}") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise ValueError(f"{path}: truncated or damaged ({reason}); {mend}") from None
    if isinstance(content, dict):
        content = content.get("model_avg", content.get("model", content))
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: holds no table of tensors; give the file of the model, not that of its optimiser")
    return {k: v.float() for k, v in content.items()}


def _arguments(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing; it comes with the checkpoint and says with how many diffusion steps it was trained"
        )
    try:
        args = json.loads(path.read_text())
        steps = int(args["diffusion_steps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or without diffusion_steps ({error}); fetch it again") from None
    for name, wanted in ARGUMENTS.items():
        if args.get(name, wanted) != wanted:
            raise ValueError(f"{path}: {name} is {args[name]!r}, only {wanted!r} can be loaded")
    return {**args, "diffusion_steps": steps}


def _sized(path: Path, state: Mapping[str, Tensor], heads: int, dropout: float) -> Denoiser:
    """A denoiser of the size that the tensors have; which of them do not fit is found afterwards."""

    def size(key: str, axis: int, otherwise: int) -> int:
        value = state.get(key)
        return value.shape[axis] if value is not None and value.ndim == 2 else otherwise

    first = f"{PARTS['input_proj']}.weight"
    if first not in state or state[first].ndim != 2:
        raise ValueError(f"{path}: not an MDM checkpoint, it has no matrix {first}")
    dim, features = state[first].shape
    numbers = [int(m[1]) for k in state if (m := re.match(re.escape(LAYER) + r"(\d+)\.", k))]
    actions = size("embed_action.action_embedding", 0, 0)
    try:
        return Denoiser(
            features, size("embed_text.weight", 1, 512), actions, dim=dim, layers=max(numbers, default=0) + 1,
            heads=heads, ff=size(f"{LAYER}0.linear1.weight", 0, 2 * dim), dropout=dropout,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _to_mdm(model: Denoiser) -> dict[str, Tensor]:
    """State of a denoiser under MDM's names."""
    state, out = model.state_dict(), {}
    for ours, theirs in PARTS.items():
        out |= {theirs + k.removeprefix(ours): v for k, v in state.items() if k.startswith(f"{ours}.")}
    for i in range(len(model.layers)):
        for kind in ("weight", "bias"):
            joined = torch.cat([state[f"layers.{i}.{p}_proj.{kind}"] for p in "qkv"])
            out[f"{LAYER}{i}.self_attn.in_proj_{kind}"] = joined
            for ours, theirs in LAYER_PARTS.items():
                out[f"{LAYER}{i}.{theirs}.{kind}"] = state[f"layers.{i}.{ours}.{kind}"]
    if model.embed_action is not None:
        out["embed_action.action_embedding"] = state["embed_action.weight"]
    table = sinusoidal_table(TABLE_ROWS, model.settings["dim"])[:, None]
    return out | dict.fromkeys(TABLES, table)


def _from_mdm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse; positional tables are left out, they are made by formula."""
    out = {}
    for key, value in state.items():
        if key in TABLES:
            continue
        if key == "embed_action.action_embedding":
            out["embed_action.weight"] = value
        elif key.startswith(LAYER):
            i, rest = key.removeprefix(LAYER).split(".", 1)
            if rest.startswith("self_attn.in_proj_"):
                kind = rest.removeprefix("self_attn.in_proj_")
                out |= {f"layers.{i}.{p}_proj.{kind}": v for p, v in zip("qkv", value.chunk(3), strict=True)}
            else:
                out[f"layers.{i}.{rest.removeprefix('self_attn.')}"] = value
        else:
            ours, theirs = next(pair for pair in PARTS.items() if key.startswith(f"{pair[1]}."))
            out[ours + key.removeprefix(theirs)] = value
    return out


# --- adapters -------------------------------------------------------------------------------------------------------


def save_adapter(folder: str | Path, adapter: tuple[Any, Mapping[str, Tensor]], card: str) -> None:
    """Write an adapter as `peft` does: `adapter_config.json`, `adapter_model.safetensors`, and a card.

    `peft.PeftModel.from_pretrained(prior.with_actions(K), folder)` reads it; the action table is in it.

    Args:
        folder: made if it is missing.
        adapter: configuration and weights, see `denoiser.adapter_of`.
        card: text of README.md.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = adapter
    config.save_pretrained(folder)
    weights = {k: v.detach().cpu().clone().contiguous() for k, v in weights.items()}
    partial = folder / "adapter_model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.replace(folder / "adapter_model.safetensors")
    (folder / "README.md").write_text(card)


def load_adapter(folder: str | Path, prior: Denoiser) -> Denoiser:
    """The generator that an adapter makes of its prior, merged, in evaluation mode.

    Args:
        folder: written by `save_adapter`.
        prior: the one it was trained on; not changed.

    Raises:
        FileNotFoundError: there is no adapter, as after tuning 'full', which changes every weight.
        ValueError: a damaged file, or an adapter of a prior of another size.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: no adapter there; with tuning 'full' there is none, load the generator folder"
            )
    ensure_torchvision()
    from peft import PeftModel  # slow import

    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            table = [k for k in file.keys() if k.endswith("embed_action.weight")]  # noqa: SIM118 (not a dict)
            actions = file.get_slice(table[0]).get_shape()[0] if table else 0
        model = prior.with_actions(actions)
        wrapped = PeftModel.from_pretrained(model, str(folder))
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder}: does not fit this prior, or is damaged ({reason}); give the prior that its README names"
        ) from None
    return wrapped.merge_and_unload(safe_merge=True).eval().requires_grad_(False)


def generator_card(
    *,
    classes: Sequence[str],
    shots: int,
    prior: str,
    encoder: str,
    source: str,
    target: str,
    settings: Mapping[str, Any],
    simulated: bool,
    adapter: bool,
) -> str:
    """Model card of an adapted generator, Markdown with the front matter that model hubs read.

    Args:
        classes: names in the order of the action ids.
        shots: real clips per class.
        prior: what was adapted.
        encoder: of the captions.
        source, target: 'embedded', or names of data folders.
        settings: of the adaptation.
        simulated: does everything, the prior included, come from the embedded world?
        adapter: are there adapters, or were all weights changed?
    """
    licence = (
        "MIT: prior and data are simulations made by this package, from no recording of a person."
        if simulated
        else "The terms of the data hold for the weights too: read those of prior, source and target before sharing. "
        "HumanML3D (AMASS) and NTU RGB+D 120 allow non-commercial research only and no redistribution of their data."
    )
    files = (
        "The folder `adapter` holds the adapters and the action table for `peft`, to be put on the prior named above. "
        f"`peft.PeftModel.from_pretrained(prior.with_actions({len(classes)}), \"adapter\")` reads it. "
        "The folder `generator` holds the same model merged, as one file."
        if adapter
        else "All weights were tuned, so there is no adapter; the folder `generator` holds the whole model."
    )
    values = "\n".join(f"| {k} | {v} |" for k, v in settings.items())
    names = "\n".join(f"| {i} | {name} |" for i, name in enumerate(classes))
    return f"""---
license: {"mit" if simulated else "other"}
library_name: {"peft" if adapter else "kinemic"}
tags: [text-to-motion, human-motion, few-shot, diffusion{", lora" if adapter else ""}]
---
# Motion generator for {len(classes)} actions, adapted from {shots} clips each

A text-to-motion diffusion model that was adapted to {len(classes)} actions with {shots} real clips per action.
It draws motions of 22 joints at 20 frames per second, as 263 features per frame.

| | |
|---|---|
| base prior | {prior} |
| text encoder | {encoder} |
| data | source {source}, target {target} |
| shots | {shots} per class, {shots * len(classes)} in all |

{files}

## Classes

| action id | class |
|---|---|
{names}

## Intended use

Synthetic clips of these classes, as training data for action recognition, and research on few-shot adaptation.

## Limits

- It has seen {shots} clips per class: their people, cameras and habits are all the variety of the target that it knows.
- Other classes, other lengths than those of the shots and free text were not tested.
- Drawn motions may slide, tremble or show another action; measure before you train on them.
- It is not for judging, identifying or imitating persons.

## Licence

{licence}

## Settings

| field | value |
|---|---|
{values}
"""
