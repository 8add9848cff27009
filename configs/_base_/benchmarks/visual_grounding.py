"""COCO-VGD val, a row per kind of prompt, and regions drawn on other images. `published`: X-SAM, arXiv 2508.04655."""

from xsam.data.region_records import CocoVgd
from xsam.tasks.visual_grounding import VisualGrounding

_vgd = dict(
    type=VisualGrounding,
    data=dict(type=CocoVgd, annotations="data/coco/annotations/coco_vgdseg_val.json", images="data/coco/val2017"),
)

benchmarks = {
    f"vgd_{kind}": dict(**_vgd, prompt=kind, published=dict(AP=ap, AP50=ap50))
    for kind, ap, ap50 in (
        ("point", 47.9, 72.5), ("scribble", 48.7, 73.4), ("box", 49.5, 74.7), ("mask", 49.7, 74.9),
    )
}  # fmt: skip
benchmarks["vgd_cross_image"] = dict(**_vgd, prompt="mask", cross=True, absent=0.5)
