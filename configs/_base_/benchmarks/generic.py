"""COCO panoptic val2017: three scores of one forward pass. `published`: X-SAM, arXiv 2508.04655."""

from xsam.data.coco import CocoInstances, CocoPanoptic
from xsam.tasks.generic import GenericSegmentation

_coco = dict(
    type=GenericSegmentation,
    data=dict(
        type=CocoPanoptic,
        annotations="data/coco/annotations/panoptic_val2017.json",
        segments="data/coco/annotations/panoptic_val2017",
        images="data/coco/val2017",
    ),
    instances=dict(
        type=CocoInstances,
        annotations="data/coco/annotations/instances_val2017.json",
        images="data/coco/val2017",
    ),
)

benchmarks = dict(
    coco_panoptic=dict(**_coco, metric="panoptic", published=dict(PQ=54.7)),
    coco_instance=dict(**_coco, metric="instance", published=dict(AP=47.0)),
    coco_semantic=dict(**_coco, metric="semantic", published=dict(mIoU=66.5)),
)
