"""The embedded world's training sources."""

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
        annotations="data/shapes/annotations/panoptic_train.json",
        segments="data/shapes/panoptic_train",
        images="data/shapes/train",
    ),
    train=True,
)
_chat = {
    name: dict(
        type=Chat,
        data=dict(type=Conversations, annotations=f"data/shapes/{name}/train.json", images="data/shapes"),
        train=True,
    )
    for name in ("captions", "conversations")
}
_refer = dict(
    type=ReferringSegmentation,
    data=dict(
        type=RefCoco,
        refs="data/shapes/refer/refs(shapes).p",
        instances="data/shapes/refer/instances.json",
        images="data/shapes",
        split="train",
    ),
    max_turns=3,
    train=True,
)

closed_set = dict(type=Mixture, sources=dict(panoptic=dict(**_panoptic, closed_set=True)))
alignment = dict(type=Mixture, sources=dict(captions=_chat["captions"]))
mixed = dict(
    type=Mixture,
    multipliers=dict(refer=0.5, chat=0.2),
    sources=dict(panoptic=dict(**_panoptic, partial=0.1), refer=_refer, chat=_chat["conversations"]),
)
