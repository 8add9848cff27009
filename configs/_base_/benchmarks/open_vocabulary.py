"""Vocabularies that no training source has. `published`: X-SAM, arXiv 2508.04655; it has no number for the last three.

`xsam data prepare ade20k` and `xsam data prepare cityscapes` write the files that the downloads lack.
"""

from xsam.data.coco import CocoInstances, CocoPanoptic
from xsam.data.label_maps import LabelMaps
from xsam.tasks.generic import GenericSegmentation

_ade_images = "data/ade20k/images/validation"

benchmarks = dict(
    ade20k_panoptic=dict(
        type=GenericSegmentation,
        data=dict(
            type=CocoPanoptic,
            annotations="data/ade20k/ade20k_panoptic_val.json",
            segments="data/ade20k/ade20k_panoptic_val",
            images=_ade_images,
        ),
        metric="panoptic",
        published=dict(PQ=20.9),
    ),
    ade20k_instance=dict(
        type=GenericSegmentation,
        data=dict(type=CocoInstances, annotations="data/ade20k/ade20k_instance_val.json", images=_ade_images),
        metric="instance",
        published=dict(AP=16.2),
    ),
    # not from the panoptic maps, where things without an instance are void
    ade20k_semantic=dict(
        type=GenericSegmentation,
        data=dict(
            type=LabelMaps,
            images=_ade_images,
            labels="data/ade20k/annotations/validation",
            names="ade20k",
            first=1,
            ignore=0,
        ),
        metric="semantic",
        published=dict(mIoU=28.8),
    ),
    cityscapes_semantic=dict(
        type=GenericSegmentation,
        data=dict(
            type=LabelMaps,
            images="data/cityscapes/leftImg8bit/val",
            labels="data/cityscapes/gtFine/val",
            names="cityscapes",
            image_suffix="_leftImg8bit.png",
            label_suffix="_gtFine_labelTrainIds.png",
        ),
        metric="semantic",
    ),
    # maps of mmsegmentation's converter: 0 = none of the 59 classes, which stand in the order of the alphabet
    pc59_semantic=dict(
        type=GenericSegmentation,
        data=dict(
            type=LabelMaps,
            images="data/pascal_context/JPEGImages",
            labels="data/pascal_context/SegmentationClassContext",
            names="pascal_context",
            first=1,
            ignore=0,
            split="data/pascal_context/ImageSets/SegmentationContext/val.txt",
        ),
        metric="semantic",
    ),
    # 21 classes, the background among them
    voc_semantic=dict(
        type=GenericSegmentation,
        data=dict(
            type=LabelMaps,
            images="data/voc2012/JPEGImages",
            labels="data/voc2012/SegmentationClass",
            names="voc",
            split="data/voc2012/ImageSets/Segmentation/val.txt",
        ),
        metric="semantic",
    ),
)
