"""Stage 1 of the full recipe, an hour for all three on 2 CPU cores. Differs from the quick one in its length.

xsam train configs/shapes/full/stage1.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage1 import *

stage.update(steps=2000, next="configs/shapes/full/stage2.py")
