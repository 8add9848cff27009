"""The paper's training data, where the public downloads put it (data/README.md)."""

from xsam.data.coco import CocoPanoptic
from xsam.data.conversations import Conversations
from xsam.data.gcg import GrandF
from xsam.data.mixture import Mixture
from xsam.data.reasonseg import ReasonSeg
from xsam.data.refer import RefCoco
from xsam.data.region_records import CocoVgd
from xsam.tasks.chat import Chat
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.grounded_conversation import GroundedConversation
from xsam.tasks.reasoning import ReasoningSegmentation
from xsam.tasks.referring import ReferringSegmentation
from xsam.tasks.visual_grounding import VisualGrounding

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
_reason = dict(
    type=ReasoningSegmentation,
    data=dict(type=ReasonSeg, folder="data/reasonseg/train", explanations="data/reasonseg/explanatory/train.json"),
    train=True,
)
_gcg = {
    f"gcg_{name}": dict(
        type=GroundedConversation,
        data=dict(type=GrandF, annotations=f"data/grandf/annotations/train/{file}.json", images=images, layout=layout),
        train=True,
    )
    for name, file, images, layout in (
        ("grandf", "GranDf_HA_GCG_train", "data/grandf/images/GranDf_HA_images/train", "grandf"),
        ("refcocog", "RefCOCOg_GCG_train", "data/coco/train2014", "refcocog"),
        ("psg", "OpenPsgGCG_train", "data/coco", "grandf"),
        ("flickr", "flickr_mergedGT_GCG_train", "data/grandf/images/flickr30k/images/train", "flickr"),
    )
}
_vgd = dict(
    type=VisualGrounding,
    data=dict(type=CocoVgd, annotations="data/coco/annotations/coco_vgdseg_train.json", images="data/coco/train2017"),
    train=True,
)

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
        reasonseg=_reason,
        **_gcg,
        coco_vgd=_vgd,
    ),
)
