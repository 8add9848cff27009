"""GranD-f val and test, scored by GLaMM's protocol. `published`: X-SAM, arXiv 2508.04655, which leaves out the images
for which it has no mask."""

from xsam.data.gcg import GcgPairs
from xsam.tasks.grounded_conversation import GroundedConversation

benchmarks = {
    f"gcg_{split}": dict(
        type=GroundedConversation,
        data=dict(
            type=GcgPairs,
            masks=f"data/grandf/annotations/val_test/{split}_gcg_coco_mask_gt.json",
            captions=f"data/grandf/annotations/val_test/{split}_gcg_coco_caption_gt.json",
            images="data/grandf/images/GranDf_HA_images/val_test",
        ),
        published=published,
    )
    for split, published in (
        ("val", dict(METEOR=15.4, CIDEr=46.3, AP50=33.2, mIoU=69.4)),
        ("test", dict(METEOR=15.1, CIDEr=42.7, AP50=32.9, mIoU=69.0)),
    )
}
