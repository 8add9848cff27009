"""`lora.py` on your own lines `{"image", "text", "segmentation"}`.

xsam train configs/finetune/lora_lines.py mixture.sources.own.data.annotations=my.jsonl ...
"""

from mmengine.config import read_base

with read_base():
    from .lora import *
    from .._base_.mixtures.own import lines as mixture, lines_val as benchmarks
