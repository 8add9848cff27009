"""The embedded world's benchmarks, on its val split."""

from xsam.data.coco import CocoInstances, CocoPanoptic
from xsam.data.conversations import Conversations
from xsam.data.refer import RefCoco
from xsam.tasks.chat import Chat
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.referring import ReferringSegmentation

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

benchmarks = dict(
    shapes_panoptic=dict(**_panoptic, metric="panoptic"),
    shapes_instance=dict(**_panoptic, metric="instance"),
    shapes_semantic=dict(**_panoptic, metric="semantic"),
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
    shapes_chat=dict(
        type=Chat,
        data=dict(type=Conversations, annotations="data/shapes/conversations/val.json", images="data/shapes"),
    ),
)
