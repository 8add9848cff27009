"""Your own data in one of three formats, and the rows that evaluate it. Paths are overrides:

mixture.sources.own.data.annotations=my.json mixture.sources.own.data.images=my/
"""

from xsam.data.coco import CocoInstances, CocoPanoptic
from xsam.data.jsonl import JsonLines
from xsam.data.mixture import Mixture
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.referring import ReferringSegmentation

_instances = {
    split: dict(type=CocoInstances, annotations=f"data/own/{split}.json", images="data/own/images")
    for split in ("train", "val")
}
_panoptic = {
    split: dict(
        type=CocoPanoptic,
        annotations=f"data/own/{split}.json",
        segments=f"data/own/panoptic_{split}",
        images="data/own/images",
    )
    for split in ("train", "val")
}
_lines = {
    split: dict(type=JsonLines, annotations=f"data/own/{split}.jsonl", images="data/own/images")
    for split in ("train", "val")
}

instances = dict(type=Mixture, sources=dict(own=dict(type=GenericSegmentation, data=_instances["train"], train=True)))
panoptic = dict(type=Mixture, sources=dict(own=dict(type=GenericSegmentation, data=_panoptic["train"], train=True)))
lines = dict(type=Mixture, sources=dict(own=dict(type=ReferringSegmentation, data=_lines["train"], train=True)))

instances_val = dict(own=dict(type=GenericSegmentation, data=_instances["val"], metric="instance"))
panoptic_val = dict(own=dict(type=GenericSegmentation, data=_panoptic["val"], metric="panoptic"))
lines_val = dict(own=dict(type=ReferringSegmentation, data=_lines["val"], several=True))
