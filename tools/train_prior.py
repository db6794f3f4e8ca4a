"""Train the text-to-motion prior that comes with the package and write it to `kinemic/priors/<scale>`.

    python tools/train_prior.py [SCALE]

The recipe is the `pretrain` section of `notebooks/params/<scale>.yaml` (default: embedded). An interrupted run resumes.
Weights are stored in half precision; the manifest records the world, the recipe, versions, seconds and the final loss.
"""

from __future__ import annotations

import json
import shutil
import sys

from kinemic import train
from kinemic.artefacts import ROOT, write_json
from kinemic.config import Experiment
from kinemic.pipeline import Lab


def main(scale: str) -> None:
    """Train if needed, then export."""
    lab = Lab(Experiment.load(scale).override(pretrain={"checkpoint": None}))
    made = lab.prior
    folder = ROOT / "kinemic" / "priors" / scale
    model = train.load_model(made.folder)
    train.save_model(folder, "denoiser", model.half(), model.settings)
    shutil.copyfile(made.folder / "log.json", folder / "log.json")
    manifest = {**made.manifest, "world": lab.source_identity, "half_precision": True}
    write_json(folder / "manifest.json", manifest)
    sys.stdout.write(f"{folder.relative_to(ROOT)}: {json.dumps(manifest['metrics'])}, {manifest['seconds']} s\n")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["embedded"])
