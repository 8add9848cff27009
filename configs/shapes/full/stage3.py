"""Stage 3 of the full recipe. Differs from the quick one in its length and in the shares of the sources.

xsam train configs/shapes/full/stage3.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage3 import *

mixture["multipliers"] = dict(
    panoptic=0.4, vocabulary=0.5, refer=1.0, grefer=0.6, reason=0.4, gcg_grandf=0.35, gcg_refcocog=0.35,
    gcg_flickr=0.35, vgd=0.4, interactive=0.4, chat=1.0, captions=0.5,
)  # fmt: skip
stage.update(init_from=["runs/shapes/full/stage1", "runs/shapes/full/stage2"], lr=1e-3, steps=7000)
