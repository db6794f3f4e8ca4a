"""Train the text-to-motion prior that comes with the package and write it to `kinemic/priors/<scale>`.

    python tools/train_prior.py [SCALE] [--start FOLDER]

The recipe is the `pretrain` section of `notebooks/params/<scale>.yaml` (default: embedded). A denoiser that spreads its
text along the clip (`denoiser.text_knots`) is trained in stages that go on from each other; the file has the last one,
`EARLIER` what the others change. An interrupted run resumes. `--start` does the last stage alone, from a prior that
stands in FOLDER.
Weights are stored in half precision; the manifest records the world, the recipes of all stages, versions, seconds and
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

EARLIER = (
    {"denoiser": {"text_knots": 0}, "pretrain": {"steps": 8000, "lr": 1e-3, "high_noise": 0.0}},
    {"pretrain": {"high_noise": 0.4}},
)


def main(scale: str, start: Path | None) -> None:
    """Train if needed, then export."""
    experiment = Experiment.load(scale).override(pretrain={"checkpoint": None})
    manifest, log = {}, []
    if start:
        manifest, log = Artefact(start, "").manifest, json.loads((start / "log.json").read_text())
    for changes in (*(EARLIER if experiment.denoiser.text_knots and not start else ()), {}):
        stage = experiment.override(**changes)
        lab = Lab(stage.override(pretrain={"start": str(start)}) if start else stage)
        start = lab.prior.folder
        manifest = {**lab.prior.manifest, **({"start": manifest} if manifest else {})}
        before = log[-1]["step"] if log else 0
        log += [{**row, "step": before + row["step"]} for row in json.loads((start / "log.json").read_text())]
    folder = ROOT / "kinemic" / "priors" / scale
    model = train.load_model(start)
    train.save_model(folder, "denoiser", model.half(), model.settings)
    write_json(folder / "log.json", log)
    write_json(folder / "manifest.json", {**manifest, "world": lab.source_identity, "half_precision": True})
    sys.stdout.write(f"{folder.relative_to(ROOT)}: {json.dumps(manifest['metrics'])}, {manifest['seconds']} s\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scale", nargs="?", default="embedded")
    parser.add_argument("--start", type=Path, help="folder of a prior to go on from, instead of the earlier stages")
    main(**vars(parser.parse_args()))
