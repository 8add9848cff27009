"""Stage 3 of the full recipe. Differs from the quick one in its length and in the shares of the sources, and has one
more: expressions that take comparing are learnt by practice (docs/shapes.md).

xsam train configs/shapes/full/stage3.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage3 import *

_refer = mixture["sources"]["refer"]
mixture["sources"]["relations"] = dict(_refer, data=dict(_refer["data"], refs="data/shapes/refer/refs(relations).p"))
mixture["multipliers"] = dict(
    panoptic=0.3, vocabulary=0.4, refer=1.1, relations=1.3, grefer=1.5, reason=0.3, gcg_grandf=0.45, gcg_refcocog=0.45,
    gcg_flickr=0.45, vgd=0.25, interactive=0.25, chat=1.0, captions=0.3,
)  # fmt: skip
stage.update(init_from=["runs/shapes/full/stage1", "runs/shapes/full/stage2"], lr=1e-3, steps=7500)
