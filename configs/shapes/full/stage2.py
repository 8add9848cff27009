"""Stage 2 of the full recipe. Differs from the quick one in its length.

xsam train configs/shapes/full/stage2.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage2 import *

stage.update(
    init_from=["data/shapes/base", "runs/shapes/full/stage1"], steps=1000, next="configs/shapes/full/stage3.py"
)
