"""The embedded world's benchmarks, on its val split."""

from xsam.tasks.chat import Chat
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.referring import ReferringSegmentation

_panoptic = dict(
    type=GenericSegmentation,
    annotations="data/shapes/annotations/panoptic_val.json",
    segments="data/shapes/panoptic_val",
    images="data/shapes/val",
    instances="data/shapes/annotations/instances_val.json",
)
_refer = dict(
    type=ReferringSegmentation,
    refs="data/shapes/refer/refs(shapes).p",
    instances="data/shapes/refer/instances.json",
    images="data/shapes",
    split="val",
)

benchmarks = dict(
    shapes_panoptic=dict(**_panoptic, metric="panoptic"),
    shapes_instance=dict(**_panoptic, metric="instance"),
    shapes_semantic=dict(**_panoptic, metric="semantic"),
    shapes_refer=_refer,
    shapes_chat=dict(type=Chat, conversations="data/shapes/conversations/val.json", images="data/shapes"),
)
