"""What `accelerate launch` runs in a test: a small pre-training and a small adaptation, and a whole experiment.

Run as `launched.py CACHE`; the first two leave `made.safetensors` and `log.json` in the cache, the third what every
experiment leaves there.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kinemic import motion, train
from kinemic.artefacts import Store
from kinemic.config import Experiment
from kinemic.denoiser import Denoiser
from kinemic.diffusion import Diffusion
from kinemic.launch import Team
from kinemic.pipeline import Lab

SIZE = dict(num_features=263, text_dim=6, dim=16, layers=1, heads=2, ff=16, dropout=0.0)
STEPS, DIFFUSION = 20, Diffusion(10)
SETTINGS = {
    "world": {"source_clips": 12, "pool_clips": 2, "test_clips": 2}, "mining": {"top_k": 3, "dim": 8},
    "pretrain": {"steps": 2}, "adapt": {"steps": 3, "lora_dropout": 0.0}, "synthesis": {"per_class": 2},
}  # fmt: skip


def stream(lengths, actions, seed):
    rng = np.random.default_rng(seed)
    features = [rng.normal(size=(n, 263)).astype(np.float32) for n in lengths]
    captions = [rng.normal(size=(2, 6)).astype(np.float32) for _ in lengths]
    return train.Stream(features, captions, np.array(actions), motion.Normalizer(np.zeros(263), np.ones(263)))


def compute(folder):
    """Odd batches, so that the parts of two processes differ in size; a bank that holds keys of several steps."""
    source, shots = stream((61, 50, 45, 70, 22, 90, 41), [-1] * 7, 0), stream((26, 31, 24, 29, 20), [0, 0, 1, 1, 1], 1)
    lists = [[np.array([0, 1, 4])] * 2] * 2 + [[np.array([2, 3, 5, 6])] * 2] * 3
    torch.manual_seed(1)
    prior = Denoiser(**SIZE)
    log = train.pretrain(
        prior, DIFFUSION, source, steps=STEPS, batch=3, ema_decay=0.5, warmup=2, save_every=7,
        checkpoint=folder / "prior.safetensors", progress="",
    )  # fmt: skip
    made = train.adapt(
        prior, DIFFUSION, shots, source, lists, num_actions=2, steps=STEPS, rank=2, alpha=4, lora_dropout=0.0,
        mic_dim=8, bank=12, accumulate=2, save_every=7, checkpoint=folder / "adapt.safetensors", progress="",
    )  # fmt: skip
    weights = {
        f"{name}.{key}": value.clone()
        for name, model in (("prior", prior), ("adapted", made.model), ("mic", made.mic))
        for key, value in model.state_dict().items()
    }
    with torch.no_grad():
        clip = torch.from_numpy(source.features[0])[None]
        mask = torch.ones(clip.shape[:2], dtype=torch.bool)
        weights["estimate"] = made.model(clip, torch.tensor([3]), mask=mask, action=torch.tensor([1]))
    weights["windows"] = torch.from_numpy(made.windows)
    save_file(weights, folder / "made.safetensors")
    (folder / "log.json").write_text(json.dumps([log, made.log]))
    return {"processes": Team("cpu").size}


if __name__ == "__main__":
    torch.set_num_threads(1)
    Team("cpu")
    store = Store(Path(sys.argv[1]))
    first = store.run("launched", {}, compute)
    assert store.run("launched", {}, compute).manifest == first.manifest
    lab = Lab(Experiment.load("smoke", shots=1, settings=SETTINGS), store, progress=False)
    (made,) = lab.each("adapt", [{"draw": 0}])
    lab.evaluate(lab.training_set(lab.load_clips(lab.synthesize(made)), synthetic=True))
