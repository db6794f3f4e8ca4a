"""Let `torchvision` import beside a CPU build of torch; open_clip and peft (through transformers) import it."""

from __future__ import annotations

import importlib.util

import torch

_KEPT: list[torch.library.Library] = []  # a declaration lives as long as its library object


def ensure_torchvision() -> None:
    """Import torchvision, declaring two of its operators first where its compiled part cannot load.

    The Linux wheels of torchvision on the package index are linked against the CUDA build of torch. Beside a CPU
    build the import stops at the registration of these operators, and takes open_clip and peft with it. Declaring
    them lets the Python part load; no compiled operator is used in this project. Where the pair matches, the first
    import succeeds and nothing is declared.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        import torchvision  # noqa: F401
