"""The embedded world's training sources."""

from xsam.data.mixture import Mixture
from xsam.tasks.chat import Chat
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.referring import ReferringSegmentation

_panoptic = dict(
    type=GenericSegmentation,
    annotations="data/shapes/annotations/panoptic_train.json",
    segments="data/shapes/panoptic_train",
    images="data/shapes/train",
    train=True,
)

closed_set = dict(type=Mixture, sources=dict(panoptic=dict(**_panoptic, closed_set=True)))
alignment = dict(
    type=Mixture,
    sources=dict(
        captions=dict(type=Chat, conversations="data/shapes/captions/train.json", images="data/shapes", train=True)
    ),
)
mixed = dict(
    type=Mixture,
    multipliers=dict(refer=0.5, chat=0.2),
    sources=dict(
        panoptic=dict(**_panoptic, partial=0.1),
        refer=dict(
            type=ReferringSegmentation,
            refs="data/shapes/refer/refs(shapes).p",
            instances="data/shapes/refer/instances.json",
            images="data/shapes",
            split="train",
            max_turns=3,
            train=True,
        ),
        chat=dict(type=Chat, conversations="data/shapes/conversations/train.json", images="data/shapes", train=True),
    ),
)
