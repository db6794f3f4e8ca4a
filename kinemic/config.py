"""One experiment as frozen, validated settings; the defaults are the paper's.

Smaller scales are named parameter files (`notebooks/params/<scale>.yaml`). Unknown names and impossible values raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kinemic.artefacts import fingerprint

__all__ = ["ABLATIONS", "BEHAVIOURS", "DEVIATIONS", "PARAMS", "Experiment", "ablation"]

PARAMS = Path(__file__).resolve().parent.parent / "notebooks" / "params"

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Part of an experiment: frozen, and a name it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WorldSettings(Section):
    """Size of the embedded corpus; read only where source or target is 'embedded'."""

    source_clips: Count = 1200  # performances; each also comes mirrored
    pool_clips: Count = 30  # per class, from which shots are drawn
    test_clips: Count = 60  # per class, other subjects
    seed: Natural = 0


class DataSettings(Section):
    """How folders are read."""

    # list of an NTU-VIBE folder that holds the shots; or official-xsub, official-xset: pool and test by sample names
    split: str = "fewshot/S0000/xsub/train"
    min_frames: Count = 40
    max_frames: Count = 200
    retarget: bool = True  # clips estimated from video get the reference bones; False keeps each performer's own
    limit: Natural = 0  # read only the first clips of a source folder; 0 = all


class TextSettings(Section):
    """Sentence encoder."""

    encoder: Literal["minilm", "minilm+detail", "clip"] = "clip"
    weights: str | None = None  # file with CLIP weights; None = hub or its cache


class DenoiserSettings(Section):
    """Transformer of the diffusion model (MDM)."""

    dim: Count = 512
    layers: Count = 8
    heads: Count = 4
    ff: Count = 1024
    dropout: Share = 0.1
    patch: Count = 1  # frames per token
    text_knots: Annotated[int, Field(ge=0)] = 0  # vectors of text along the clip; 0 = one token says it, as in MDM


class DiffusionSettings(Section):
    """Noise schedule and sampling."""

    num_timesteps: Annotated[int, Field(ge=2)] = 50
    guidance_scale: Weight = 2.5
    sampler: Literal["ddpm", "ddim", "dpmsolver++"] = "ddpm"
    sampling_steps: Natural = 0  # 0 = all


class PretrainSettings(Section):
    """Training of the text-to-motion prior, where no checkpoint is given."""

    checkpoint: str | None = None  # folder written by an earlier run, or MDM's published model*.pt (or its folder)
    start: str | None = None  # folder of a prior to go on from; of the same size, with or without knots
    steps: Count = 600_000
    batch: Count = 64  # over all processes
    lr: Rate = 1e-4
    warmup: Natural = 0
    weight_decay: Weight = 0.0
    ema_decay: Share = 0.9999
    cond_mask_prob: Share = 0.1
    high_noise: Share = 0.0  # share of clips whose step is drawn from the noisiest fifth; 0 = all steps alike, as MDM
    accumulate: Count = 1  # batches per update, their gradients averaged
    precision: Literal["no", "bf16"] = "no"  # of the transformer's passes
    max_grad_norm: Rate = 1.0
    save_every: Count = 1000
    seed: Natural = 10


class MiningSettings(Section):
    """Retrieval and the MIC module."""

    top_k: Count = 250
    dim: Count = 512
    temperature: Rate = 0.07
    bank: Natural = 60


class AdaptSettings(Section):
    """Few-shot adaptation. Every deviation of the reference implementation is one named alternative here."""

    method: Literal["kinemic", "naive", "scratch"] = "kinemic"
    steps: Count = 10_000
    batch: Natural = 0  # clips per draw, over all processes; 0 = all shots, as in the paper
    accumulate: Count = 1  # draws per update, their gradients averaged
    precision: Literal["no", "bf16"] = "no"  # of the transformer's passes
    lr: Rate = 2e-5
    mic_lr: Rate = 2e-5
    action_lr: Weight = 1e-3  # at the adapters' rate (0 = the same) the table hardly leaves its initial value
    weight_decay: Weight = 1e-5
    max_grad_norm: Rate = 1.0
    ema_decay: Share = 0.0  # 0 = off
    save_every: Count = 1000
    seed: Natural = 10
    tuning: Literal["lora", "full"] = "lora"
    rank: Count = 16
    alpha: Rate = 32
    lora_dropout: Share = 0.1
    weight_rec: Weight = 1.0
    weight_con: Weight = 1.0
    weight_win: Weight = 1.0
    weight_dist: Weight = 0.0
    window: Literal["mined", "random", "none"] = "mined"
    window_weight: Literal["dynamic", "one"] = "dynamic"
    pairs: Literal["retrieved", "random"] = "retrieved"
    condition: Literal["text+action", "text", "action"] = "text+action"
    cond_mask_prob: Share = 0.1
    condition_dropout: Literal["joint", "independent"] = "joint"
    mic_condition: Literal["full", "free"] = "full"  # 'free' hides caption and action from the latents that MIC reads
    teacher_mode: Literal["eval", "train"] = "eval"
    window_features: Literal["recut", "sliced"] = "recut"
    short_source: Literal["mask", "repeat"] = "mask"
    action_init: Literal["zero", "normal"] = "zero"
    num_timesteps: Natural = 0  # of the target stream; 0 = the prior's, the reference takes 100
    time_map: Literal["nearest", "ceil"] = "nearest"
    warmup_steps: Natural = 0  # steps in which windows do not train the generator, while MIC learns


class SynthesisSettings(Section):
    """What is drawn from the adapted model."""

    per_class: Count = 384
    batch: Count = 64
    seed: Natural = 10
    reconcile: bool = True  # make positions, velocities and bones of drawn vectors agree; False keeps them as drawn


class HarSettings(Section):
    """Classifier and its training."""

    budget: Literal["updates", "epochs"] = "updates"  # the same updates for every set, or the same passes over each
    updates: Count = 1480  # of budget 'updates'
    referee_updates: Natural = 0  # of the classifier of the whole pool that judges clips; 0 = updates
    batch: Count = 64
    lr: Rate = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: Weight = 5e-4
    clip_len: Count = 100
    channels: Count = 64
    depth: Count = 10
    scheme: Literal["root", "pelvis", "reference", "none"] = "root"
    augment: Literal["none", "standard"] = "none"
    report: Literal["last", "best"] = "last"  # 'best' chooses the epoch on the test list, as the reference does
    seeds: Count = 5

    @model_validator(mode="after")
    def _upright(self) -> HarSettings:
        if self.scheme == "reference" and self.augment != "none":
            raise ValueError("scheme 'reference' moves the vertical axis, so clips cannot be turned: set augment none")
        return self


class Experiment(Section):
    """All settings of one run.

    Args:
        scale: name of the parameter file the settings come from; every result carries it.
        source: 'embedded' or a HumanML3D folder.
        target: 'embedded', an NTU-VIBE folder or a labelled folder.
        shots: real clips per class.
        draws: independent few-shot draws; the interval of every headline number is over them.
        seed: of the draws.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
    """

    scale: str = "paper"
    source: str = "embedded"
    target: str = "embedded"
    shots: Count = 10
    draws: Count = 3
    seed: Natural = 42
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    world: WorldSettings = WorldSettings()
    data: DataSettings = DataSettings()
    text: TextSettings = TextSettings()
    denoiser: DenoiserSettings = DenoiserSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    pretrain: PretrainSettings = PretrainSettings()
    mining: MiningSettings = MiningSettings()
    adapt: AdaptSettings = AdaptSettings()
    synthesis: SynthesisSettings = SynthesisSettings()
    har: HarSettings = HarSettings()

    @model_validator(mode="after")
    def _possible(self) -> Experiment:
        if self.denoiser.dim % (2 * self.denoiser.heads):
            raise ValueError(f"denoiser.dim {self.denoiser.dim} cannot be split into {self.denoiser.heads} even heads")
        if self.diffusion.sampling_steps > self.diffusion.num_timesteps:
            raise ValueError(
                f"diffusion.sampling_steps {self.diffusion.sampling_steps} exceeds num_timesteps "
                f"{self.diffusion.num_timesteps}"
            )
        return self

    @classmethod
    def load(cls, scale: str, /, **parameters: Any) -> Experiment:
        """Settings of a scale, with single parameters replaced.

        Args:
            scale: name of a file in `notebooks/params`, or the path of a YAML file.
            **parameters: top-level fields, and `settings`, a mapping section -> field -> value. None keeps the scale's.
                `settings` may also name a `behaviour` (see `BEHAVIOURS`), which fields given beside it override.

        Raises:
            FileNotFoundError: no such scale; lists those there are.
            ValueError: an unknown or impossible parameter; one line that names all of them.
        """
        path = Path(scale) if scale.endswith((".yaml", ".yml")) else PARAMS / f"{scale}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in PARAMS.glob("*.yaml")))
            raise FileNotFoundError(
                f"no parameter file {path.name}; scales are {known}, or give a path that ends in .yaml"
            )
        try:
            given = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not valid YAML ({str(error).splitlines()[-1].strip()})") from None
        if not isinstance(given, dict):
            raise ValueError(f"{path}: expected a mapping of parameters, found {type(given).__name__}")
        given["scale"] = path.stem
        merged: dict[str, Any] = {}
        for layer, origin in (
            (given, str(path)),
            ({k: v for k, v in parameters.items() if v is not None}, "parameters"),
        ):
            layer = dict(layer)
            sections = layer.pop("settings", None) or {}
            if not isinstance(sections, Mapping):
                raise ValueError(f"{origin}: settings must map sections to fields, found {sections!r}")
            merged.update(layer)
            sections = dict(sections)
            behaviour = sections.pop("behaviour", "corrected")
            if behaviour not in BEHAVIOURS:
                raise ValueError(
                    f"{origin}: settings.behaviour is {behaviour!r}, choose one of {', '.join(BEHAVIOURS)}"
                )
            for name, fields in (*BEHAVIOURS[behaviour].items(), *sections.items()):
                if not isinstance(fields, Mapping):
                    raise ValueError(f"{origin}: settings.{name} must be a mapping of fields, found {fields!r}")
                merged[name] = {**merged.get(name, {}), **fields}
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
            raise ValueError(f"parameters of {path.name}: {said}") from None

    @classmethod
    def from_notebook(cls, names: MutableMapping[str, Any]) -> Experiment:
        """Settings from the namespace of a notebook whose parameters cell, and perhaps papermill, filled it.

        Every public plain value counts as a parameter: papermill only warns about a name it does not know, so a
        misspelt parameter would otherwise be ignored in silence.

        Args:
            names: `globals()` of the notebook; must hold `scale`. The names found are remembered in it.
        """
        # Run again in a live notebook, the cell must not take what later cells defined for parameters.
        first = names.setdefault("_kinemic_parameters", tuple(names))
        plain = {
            k: v
            for k, v in ((name, names[name]) for name in first if name in names)
            if not k.startswith("_")
            and k not in ("In", "Out")
            and not isinstance(v, (ModuleType, FunctionType, type))
            and isinstance(v, (int, float, str, bool, list, dict, type(None)))
        }
        return cls.load(plain.pop("scale"), **plain)

    @property
    def edition(self) -> str:
        """Name under which results are published: the scale's, or the scale and a hash where any parameter differs."""
        if self == Experiment.load(self.scale):
            return self.scale
        return f"{self.scale}.{fingerprint(self.record())[:8]}"

    def record(self) -> dict[str, Any]:
        """All settings as plain data for a manifest; of files and folders only the name, not where they lie."""
        values = self.model_dump()
        for section, field in ((values, "source"), (values, "target"), (values["text"], "weights")):
            section[field] = section[field] and Path(section[field]).name
        return values

    def override(self, **sections: Mapping[str, Any]) -> Experiment:
        """Copy with fields of sections replaced and validated, e.g. `override(adapt={'steps': 100})`."""
        values = self.model_dump()
        for name, fields in sections.items():
            values[name] = {**values[name], **fields} if isinstance(fields, Mapping) else fields
        return type(self).model_validate(values)


DEVIATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "prior time map": {"adapt": {"time_map": "ceil"}},
    "diffusion steps": {"adapt": {"num_timesteps": 100}},
    "condition dropping": {"adapt": {"condition_dropout": "independent"}},
    "teacher mode": {"adapt": {"teacher_mode": "train"}},
    "retargeting": {"data": {"retarget": False}},
    "short sources": {"adapt": {"short_source": "repeat"}},
    "window features": {"adapt": {"window_features": "sliced"}},
    "action table": {"adapt": {"action_init": "normal", "action_lr": 0.0}},
    "drawn vectors": {"synthesis": {"reconcile": False}},
    "classifier input": {"har": {"scheme": "reference", "augment": "none"}},
    "update counts": {"har": {"budget": "epochs"}},
    "best epoch": {"har": {"report": "best"}},
}
"""What the reference implementation does otherwise, one switch a line, as fields of sections that bring it back.

The time map matters only where the target stream has another number of diffusion steps than the prior.
"""


def _joined(switches: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    joined: dict[str, dict[str, Any]] = {}
    for sections in switches:
        for name, fields in sections.items():
            joined.setdefault(name, {}).update(fields)
    return joined


BEHAVIOURS: dict[str, dict[str, dict[str, Any]]] = {"corrected": {}, "reference": _joined(DEVIATIONS.values())}
"""Named configurations: ours, and the reference implementation with all its deviations.

`settings: {behaviour: reference}` in parameters takes one on top of any scale.
"""


ABLATIONS: dict[str, dict[str, Any]] = {
    "kinemic": {},
    "no contrast": {"weight_con": 0.0},
    "no window": {"window": "none"},
    "random window": {"window": "random"},
    "random pairs": {"pairs": "random"},
    "no window weight": {"window_weight": "one"},
    "no text": {"condition": "action"},
    "no action": {"condition": "text"},
    "full tuning": {"tuning": "full"},
    "condition-free mining": {"mic_condition": "free"},
}
"""Named alternatives to the method, each as fields of the adaptation that it changes."""


def ablation(experiment: Experiment, name: str) -> Experiment:
    """The experiment with one named alternative.

    Raises:
        ValueError: unknown name; lists those there are.
    """
    if name not in ABLATIONS:
        raise ValueError(f"unknown ablation {name!r}: choose one of {', '.join(ABLATIONS)}")
    return experiment.override(adapt=ABLATIONS[name])
