"""MME, MMBench, SEED-Bench, POPE and AI2D from VLMEvalKit's tables. `published`: X-SAM, arXiv 2508.04655.

VLMEvalKit, which made the published numbers, scores MMBench circularly and gives POPE as F1. It takes an answer by
matching or, with a key, by a judge; here it is matching alone.
"""

from xsam.data.tsv import TsvQuestions
from xsam.tasks.multiple_choice import MultipleChoice

_mme = dict(
    perception=(
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    ),
    cognition=("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)  # fmt: skip
benchmarks = {
    name: dict(
        type=MultipleChoice,
        data=dict(type=TsvQuestions, table=f"data/chat/{table}.tsv"),
        **scoring,
        published=published,
    )
    for name, table, scoring, published in (
        ("mme", "MME", dict(sums=_mme), dict(perception=1374, cognition=312)),
        ("mmbench_en_dev", "MMBench_DEV_EN", dict(measure="circular"), dict(accuracy=69.3)),
        ("seedbench_image", "SEEDBench_IMG", dict(), dict(accuracy=69.3)),
        ("pope", "POPE", dict(measure="F1"), dict(F1=89.3)),
        ("ai2d_test", "AI2D_TEST", dict(), dict(accuracy=62.6)),
    )
}
