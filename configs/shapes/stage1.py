"""Stage 1 on the embedded world: the segmentor learns a closed set of classes, without language.

xsam train configs/shapes/stage1.py
"""

from mmengine.config import read_base

with read_base():
    from .._base_.benchmarks.shapes import *
    from .._base_.mixtures.shapes import closed_set as mixture
    from .._base_.models.xsam_tiny import *

from xsam.models.mask_head import ClosedSetClassifier

for _part in ("vision_encoder", "projector", "seg_projector", "llm", "phrase_projector"):
    model.pop(_part)
model.update(classifier=dict(type=ClosedSetClassifier, channels=64, num_classes=10))
processor.update(vision_size=0, tokenizer="")
_closed = ("shapes_panoptic", "shapes_instance", "shapes_semantic")
benchmarks = {name: dict(**benchmarks[name], closed_set=True) for name in _closed}

stage = dict(
    name="stage1",
    init_from=["data/shapes/base"],
    new=["connector", "pixel_decoder", "mask_decoder", "classifier"],
    frozen=[],
    lr=1e-3,
    lr_scale=dict(seg_encoder=0.3),
    weight_decay=0.05,
    clip=1.0,
    schedule=dict(kind="cosine", warmup=0.05),
    steps=320,
    batch_size=8,
    precision="fp32",
    zero=0,
    workers=0,
    seed=0,
    log_every=50,
    next="configs/shapes/stage2.py",
)
