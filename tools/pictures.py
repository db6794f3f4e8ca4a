"""Draw the two pictures of the README from the artefacts of an embedded run, without choosing by eye.

    python tools/pictures.py

The mined window is the one of median overlap with the truth among the windows of one class; the generated motions are
the first synthetic clip of each class of draw 0.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from kinemic import viz
from kinemic.artefacts import ROOT
from kinemic.config import Experiment
from kinemic.pipeline import Lab

CLASS = "side kick"


def main() -> None:
    """Write `book/images/mined-window.png` and `book/images/generated.png`."""
    viz.use_style()
    folder = ROOT / "book" / "images"
    folder.mkdir(exist_ok=True)
    lab = Lab(Experiment.load("embedded"))
    adapted = lab.adapt(0)

    windows = lab.mine(0, per_class=lab.cfg.synthesis.per_class)
    overlap = lab.window_quality(windows)["iou"]
    own = np.flatnonzero((windows.action == lab.data.classes.index(CLASS)) & np.isfinite(overlap))
    chosen = own[np.argsort(overlap[own], kind="stable")[len(own) // 2]]
    clip, start = lab.data.source[windows.rows[chosen]], int(windows.start[chosen])
    span = (start, start + int(windows.length[chosen]))
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 3.8), height_ratios=(3, 2), layout="constrained")
    viz.strip(clip.joints, frames=14, ax=above, highlight=span, title=f"“{clip.captions[0].text}”")
    viz.attention(
        windows.attention[chosen],
        window=span,
        truth=clip.segments,
        ax=below,
        title=f"attention, the window mined for “{CLASS}”, and the true segments",
    )
    figure.savefig(folder / "mined-window.png", dpi=110)

    clips = lab.load_clips(lab.synthesize(adapted))
    first = [next(c for c in clips if c.action == name) for name in lab.data.classes]
    viz.strips([(c.action, c.joints) for c in first], frames=12).savefig(folder / "generated.png", dpi=70)


if __name__ == "__main__":
    main()
