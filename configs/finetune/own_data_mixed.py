"""`own_data.py` on your own data mixed with all of the embedded world, which is scored as well.

xsam data prepare shapes
xsam train configs/finetune/own_data_mixed.py data=my.jsonl val=held_out.jsonl
"""

from mmengine.config import read_base

with read_base():
    from .own_data import *
    from .._base_.benchmarks.shapes import benchmarks
    from .._base_.mixtures.shapes import mixed as mixture

mixture["multipliers"].update(own=10.0)  # half of the samples, for some hundred images
