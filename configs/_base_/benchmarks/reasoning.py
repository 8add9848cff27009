"""ReasonSeg: val and test, the latter also by kind of question. `published`: X-SAM, arXiv 2508.04655, whose gIoU of all
of test is above that of both its parts; do not expect it."""

from xsam.data.reasonseg import ReasonSeg
from xsam.tasks.reasoning import ReasoningSegmentation

benchmarks = {
    f"reasonseg_{name}": dict(
        type=ReasoningSegmentation,
        data=dict(type=ReasonSeg, folder=f"data/reasonseg/{split}"),
        questions=questions,
        published=dict(gIoU=giou, cIoU=ciou),
    )
    for name, split, questions, giou, ciou in (
        ("val", "val", "all", 56.6, 32.9),
        ("test", "test", "all", 57.8, 41.0),
        ("test_short", "test", "short", 47.7, 48.1),
        ("test_long", "test", "long", 56.0, 40.8),
    )
}
