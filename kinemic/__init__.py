"""kinemic: few-shot action synthesis by kinematic mining.

A small, readable reproduction of KineMIC: a text-to-motion diffusion prior is adapted to a new set of actions from a
handful of clips, guided by windows mined from captioned source motion, and the clips it then makes are used to train
an action recogniser. Read the modules in the order in which a clip meets them: `motion` (skeleton and features),
`data` (clips, splits, batches), then retrieval, denoiser, diffusion, mining, training and evaluation.
"""

__version__ = "0.1.0"
