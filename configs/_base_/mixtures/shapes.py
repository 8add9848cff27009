"""The embedded world's training sources."""

from xsam.data.coco import CocoPanoptic
from xsam.data.conversations import Conversations
from xsam.data.gcg import GrandF
from xsam.data.mixture import Mixture
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

_panoptic, _pairs = (  # by shapes alone; by names such as "red circle", but none of a held-out pair
    dict(
        type=GenericSegmentation,
        data=dict(
            type=CocoPanoptic,
            annotations=f"data/shapes/annotations/{names}_train.json",
            segments="data/shapes/panoptic_train",
            images="data/shapes/train",
        ),
        train=True,
    )
    for names in ("panoptic", "pairs")
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

_grefer = dict(
    type=ReferringSegmentation,
    data=dict(
        type=GRefCoco,
        refs="data/shapes/refer/grefs(shapes).json",
        instances="data/shapes/refer/instances.json",
        images="data/shapes",
        split="train",
    ),
    several=True,
    max_turns=3,
    train=True,
)
_reason = dict(
    type=ReasoningSegmentation,
    data=dict(
        type=ReasonSeg, folder="data/shapes/reason/train", explanations="data/shapes/reason/explanatory/train.json"
    ),
    train=True,
)
_gcg = {
    f"gcg_{layout}": dict(
        type=GroundedConversation,
        data=dict(
            type=GrandF,
            annotations=f"data/shapes/gcg/{layout}_train.json",
            images="data/shapes/train",
            layout=layout,
        ),
        train=True,
    )
    for layout in ("grandf", "refcocog", "flickr")
}
_vgd = dict(
    type=VisualGrounding,
    data=dict(type=CocoVgd, annotations="data/shapes/vgd/train.json", images="data/shapes/train"),
    train=True,
)
_interactive = dict(
    type=InteractiveSegmentation,
    data=dict(
        type=CocoInteractive, annotations="data/shapes/interactive/train.json", images="data/shapes/train", scale=0
    ),
    train=True,
)

closed_set = dict(type=Mixture, sources=dict(panoptic=dict(**_panoptic, closed_set=True)))
alignment = dict(type=Mixture, sources=dict(captions=_chat["captions"], chat=_chat["conversations"]))
mixed = dict(
    type=Mixture,
    multipliers=dict(
        panoptic=0.5, vocabulary=0.35, refer=0.7, grefer=0.3, reason=0.2, gcg_grandf=0.2, gcg_refcocog=0.2,
        gcg_flickr=0.2, vgd=0.25, interactive=0.25, chat=0.4, captions=0.1,
    ),
    sources=dict(
        panoptic=dict(**_panoptic, partial=0.1), vocabulary=_pairs, refer=_refer, grefer=_grefer, reason=_reason,
        **_gcg, vgd=_vgd, interactive=_interactive, chat=_chat["conversations"], captions=_chat["captions"],
    ),
)  # fmt: skip
