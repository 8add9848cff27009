"""`lora.py` on your own data mixed with all that the checkpoint was trained on, so that it forgets less.

xsam train configs/finetune/lora_mixed.py data=my.json --init-from CHECKPOINT
"""

from mmengine.config import read_base

with read_base():
    from .lora import *
    from .._base_.mixtures.paper import mixed as mixture

mixture.update(multipliers=dict(own=4.0))  # on top of its repeat factor
stage.update(epochs=1)
