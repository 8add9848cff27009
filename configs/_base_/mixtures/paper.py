"""The paper's training data, where the public downloads put it (data/README.md)."""

from xsam.data.mixture import Mixture
from xsam.tasks.chat import Chat
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.referring import ReferringSegmentation

_panoptic = dict(
    type=GenericSegmentation,
    annotations="data/coco/annotations/panoptic_train2017.json",
    segments="data/coco/annotations/panoptic_train2017",
    images="data/coco/train2017",
    train=True,
)
_refer = dict(type=ReferringSegmentation, images="data/coco/train2014", split="train", train=True)

closed_set = dict(type=Mixture, sources=dict(coco_panoptic=dict(**_panoptic, closed_set=True)))
alignment = dict(
    type=Mixture,
    sources=dict(
        llava_pretrain=dict(
            type=Chat,
            conversations="data/llava/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
            images="data/llava/LLaVA-Pretrain/images",
            train=True,
        )
    ),
)
mixed = dict(
    type=Mixture,
    threshold=0.1,
    contrast=4,
    sources=dict(
        llava_instruct=dict(
            type=Chat,
            conversations="data/llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
            images="data/llava/images",
            train=True,
        ),
        coco_panoptic=_panoptic,
        refcoco=dict(**_refer, refs="data/refer/refcoco/refs(unc).p", instances="data/refer/refcoco/instances.json"),
        refcoco_plus=dict(
            **_refer, refs="data/refer/refcoco+/refs(unc).p", instances="data/refer/refcoco+/instances.json"
        ),
        refcocog=dict(**_refer, refs="data/refer/refcocog/refs(umd).p", instances="data/refer/refcocog/instances.json"),
    ),
)
