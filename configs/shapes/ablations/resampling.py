"""The quick stage 3 with nothing but the balanced resampling (t = 0.1); one source, reasoning, has 200 samples.

xsam train configs/shapes/ablations/resampling.py
"""

from mmengine.config import read_base

with read_base():
    from ..stage3 import *

mixture["multipliers"] = {}
