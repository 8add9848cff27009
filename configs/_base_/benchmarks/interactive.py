"""COCO-Interactive val (PSALM's file), a row per kind of prompt. `published`: X-SAM, arXiv 2508.04655."""

from xsam.data.region_records import CocoInteractive
from xsam.tasks.interactive import InteractiveSegmentation

benchmarks = {
    f"interactive_{kind}": dict(
        type=InteractiveSegmentation,
        data=dict(
            type=CocoInteractive,
            annotations="data/coco/annotations/coco_interactive_val_psalm.json",
            images="data/coco/val2017",
        ),
        prompt=kind,
        published=dict(mIoU=miou, cIoU=ciou),
    )
    for kind, miou, ciou in (
        ("point", 65.4, 62.9), ("scribble", 66.9, 75.7), ("box", 69.6, 75.4), ("mask", 69.7, 77.0),
    )
}  # fmt: skip
