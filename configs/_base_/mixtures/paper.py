"""The paper's training data, where the public downloads put it (data/README.md)."""

from xsam.data.coco import CocoPanoptic
from xsam.data.conversations import Conversations
from xsam.data.mixture import Mixture
from xsam.data.refer import RefCoco
from xsam.tasks.chat import Chat
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.referring import ReferringSegmentation

_panoptic = dict(
    type=GenericSegmentation,
    data=dict(
        type=CocoPanoptic,
        annotations="data/coco/annotations/panoptic_train2017.json",
        segments="data/coco/annotations/panoptic_train2017",
        images="data/coco/train2017",
    ),
    train=True,
)
_refer = {
    name: dict(
        type=ReferringSegmentation,
        data=dict(
            type=RefCoco,
            refs=f"data/refer/{name}/refs({by}).p",
            instances=f"data/refer/{name}/instances.json",
            images="data/coco/train2014",
            split="train",
        ),
        train=True,
    )
    for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))
}

closed_set = dict(type=Mixture, sources=dict(coco_panoptic=dict(**_panoptic, closed_set=True)))
alignment = dict(
    type=Mixture,
    sources=dict(
        llava_pretrain=dict(
            type=Chat,
            data=dict(
                type=Conversations,
                annotations="data/llava/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
                images="data/llava/LLaVA-Pretrain/images",
            ),
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
            data=dict(
                type=Conversations,
                annotations="data/llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
                images="data/llava/images",
            ),
            train=True,
        ),
        coco_panoptic=_panoptic,
        refcoco=_refer["refcoco"],
        refcoco_plus=_refer["refcoco+"],
        refcocog=_refer["refcocog"],
    ),
)
