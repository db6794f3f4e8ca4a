"""Train the text-to-motion prior that comes with the package and write it to `kinemic/priors/<scale>`.

    python tools/train_prior.py [SCALE] [--start FOLDER]

The recipe is the `pretrain` section of `notebooks/params/<scale>.yaml` (default: embedded). A denoiser that spreads its
text along the clip (`denoiser.text_knots`) is trained in two stages, the first without (`FIRST`). An interrupted run
resumes. `--start` goes on from a prior that stands in FOLDER and leaves the first stage out.
Weights are stored in half precision; the manifest records the world, the recipes of both stages, versions, seconds and
the final loss.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from kinemic import train
from kinemic.artefacts import ROOT, Artefact, write_json
from kinemic.config import Experiment
from kinemic.pipeline import Lab

# What differs in the first stage.
FIRST = {"denoiser": {"text_knots": 0}, "pretrain": {"steps": 8000, "lr": 1e-3, "high_noise": 0.0}}


def main(scale: str, start: Path | None) -> None:
    """Train if needed, then export."""
    experiment = Experiment.load(scale).override(pretrain={"checkpoint": None})
    if start is None and experiment.denoiser.text_knots:
        start = Lab(experiment.override(**FIRST)).prior.folder
    begun = Artefact(start, "").manifest if start else None
    lab = Lab(experiment.override(pretrain={"start": str(start)}) if start else experiment)
    made = lab.prior
    folder = ROOT / "kinemic" / "priors" / scale
    model = train.load_model(made.folder)
    train.save_model(folder, "denoiser", model.half(), model.settings)
    log = []
    for stage in filter(None, (start, made.folder)):
        before = log[-1]["step"] if log else 0
        log += [{**row, "step": before + row["step"]} for row in json.loads((stage / "log.json").read_text())]
    write_json(folder / "log.json", log)
    manifest = {**made.manifest, "world": lab.source_identity, "half_precision": True, "start": begun}
    write_json(folder / "manifest.json", manifest)
    sys.stdout.write(f"{folder.relative_to(ROOT)}: {json.dumps(manifest['metrics'])}, {manifest['seconds']} s\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scale", nargs="?", default="embedded")
    parser.add_argument("--start", type=Path, help="folder of a prior to go on from, instead of the first stage")
    main(**vars(parser.parse_args()))
