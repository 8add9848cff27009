"""`lora.py` on your own COCO panoptic data.

xsam train configs/finetune/lora_panoptic.py mixture.sources.own.data.annotations=my.json ...
"""

from mmengine.config import read_base

with read_base():
    from .lora import *
    from .._base_.mixtures.own import panoptic as mixture, panoptic_val as benchmarks
