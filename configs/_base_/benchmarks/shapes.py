"""The embedded world's benchmarks, on its val split."""

from xsam.data.coco import CocoInstances, CocoPanoptic
from xsam.data.conversations import Conversations
from xsam.data.gcg import GcgPairs
from xsam.data.reasonseg import ReasonSeg
from xsam.data.refer import GRefCoco, RefCoco
from xsam.data.region_records import CocoInteractive, CocoVgd
from xsam.tasks.chat import Chat
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.grounded_conversation import GroundedConversation
from xsam.tasks.interactive import InteractiveSegmentation
from xsam.tasks.reasoning import ReasoningSegmentation
from xsam.tasks.referring import ReferringSegmentation
from xsam.tasks.visual_grounding import VisualGrounding

_panoptic = dict(
    type=GenericSegmentation,
    data=dict(
        type=CocoPanoptic,
        annotations="data/shapes/annotations/panoptic_val.json",
        segments="data/shapes/panoptic_val",
        images="data/shapes/val",
    ),
    instances=dict(
        type=CocoInstances, annotations="data/shapes/annotations/instances_val.json", images="data/shapes/val"
    ),
)

_pairs = {  # categories by colour and shape; those of "novel" are in no scene and no text of the training
    split: dict(
        type=GenericSegmentation,
        data=dict(
            type=CocoPanoptic,
            annotations=f"data/shapes/annotations/pairs_{split}.json",
            segments=f"data/shapes/panoptic_{split}",
            images=f"data/shapes/{split}",
        ),
        metric="panoptic",
    )
    for split in ("val", "novel")
}
_interactive = dict(
    type=InteractiveSegmentation,
    data=dict(type=CocoInteractive, annotations="data/shapes/interactive/val.json", images="data/shapes/val", scale=0),
)
_vgd = dict(
    type=VisualGrounding,
    data=dict(type=CocoVgd, annotations="data/shapes/vgd/val.json", images="data/shapes/val"),
)
_prompts = ("point", "scribble", "box", "mask")

categories = dict(  # what predict and demo ask for where nothing else is named
    things=["circle", "square", "triangle", "star", "ring", "cross"], stuff=["sky", "grass", "sand", "water"]
)

benchmarks = dict(
    shapes_panoptic=dict(**_panoptic, metric="panoptic"),
    shapes_instance=dict(**_panoptic, metric="instance"),
    shapes_semantic=dict(**_panoptic, metric="semantic"),
    shapes_pairs=_pairs["val"],
    shapes_ovseg=_pairs["novel"],
    shapes_refer=dict(
        type=ReferringSegmentation,
        data=dict(
            type=RefCoco,
            refs="data/shapes/refer/refs(shapes).p",
            instances="data/shapes/refer/instances.json",
            images="data/shapes",
            split="val",
        ),
    ),
    shapes_grefer=dict(
        type=ReferringSegmentation,
        data=dict(
            type=GRefCoco,
            refs="data/shapes/refer/grefs(shapes).json",
            instances="data/shapes/refer/instances.json",
            images="data/shapes",
            split="val",
        ),
        several=True,
    ),
    shapes_reason=dict(type=ReasoningSegmentation, data=dict(type=ReasonSeg, folder="data/shapes/reason/val")),
    shapes_gcg=dict(
        type=GroundedConversation,
        data=dict(
            type=GcgPairs,
            masks="data/shapes/gcg/val_gcg_coco_mask_gt.json",
            captions="data/shapes/gcg/val_gcg_coco_caption_gt.json",
            images="data/shapes/val",
        ),
        max_new_tokens=128,
    ),
    **{f"shapes_interactive_{kind}": dict(**_interactive, prompt=kind) for kind in _prompts},
    **{f"shapes_vgd_{kind}": dict(**_vgd, prompt=kind) for kind in _prompts},
    shapes_vgd_cross=dict(**_vgd, prompt="mask", cross=True, absent=0.5),
    shapes_chat=dict(
        type=Chat,
        data=dict(type=Conversations, annotations="data/shapes/conversations/val.json", images="data/shapes"),
    ),
)
