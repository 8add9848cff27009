"""RefCOCO, RefCOCO+ and RefCOCOg: eight splits, `published`: cIoU of X-SAM, arXiv 2508.04655. gRefCOCO: three splits.

gRefCOCO has no `published`: X-SAM's numbers for it, in a later paper, leave out the expressions without a target, which
the dataset's own protocol counts.
"""

from xsam.data.refer import GRefCoco, RefCoco
from xsam.tasks.referring import ReferringSegmentation

benchmarks = {
    f"{name}_{split}": dict(
        type=ReferringSegmentation,
        data=dict(
            type=RefCoco,
            refs=f"data/refer/{name}/refs({by}).p",
            instances=f"data/refer/{name}/instances.json",
            images="data/coco/train2014",
            split=split,
        ),
        published=dict(cIoU=ciou),
    )
    for name, by, splits in (
        ("refcoco", "unc", dict(val=85.1, testA=87.1, testB=83.4)),
        ("refcoco+", "unc", dict(val=78.0, testA=81.0, testB=74.4)),
        ("refcocog", "umd", dict(val=83.8, test=83.9)),
    )
    for split, ciou in splits.items()
}
benchmarks |= {
    f"grefcoco_{split}": dict(
        type=ReferringSegmentation,
        data=dict(
            type=GRefCoco,
            refs="data/refer/grefcoco/grefs(unc).json",
            instances="data/refer/grefcoco/instances.json",
            images="data/coco/train2014",
            split=split,
        ),
        several=True,
    )
    for split in ("val", "testA", "testB")
}
