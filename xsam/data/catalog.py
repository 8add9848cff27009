"""The datasets: where they come from, and how many records their rows should have. docs/datasets.md says the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Dataset:
    """Its files, and how many records each of its rows should have: exact, or with "≤" (repeats are left out) or "≈"
    (not verified by us) before it; "?" = not published."""

    get: str  # where its files come from
    prepare: str = ""  # NAME of `xsam data prepare` that makes or checks some of them
    train: Mapping[str, str] = field(default_factory=dict)  # training samples by source of a mixture
    benchmarks: Mapping[str, str] = field(default_factory=dict)  # evaluation samples
    configs: str = "configs/xsam_phi3_stage"  # whose rows these are; with none named, all of them

    @property
    def rows(self) -> dict[str, str]:
        """All counts, by row as an override names it."""
        sources = {f"mixture.sources.{name}": count for name, count in self.train.items()}
        return sources | {f"benchmarks.{name}": count for name, count in self.benchmarks.items()}

    @property
    def remedy(self) -> str:
        """What to do where a file is missing."""
        made = f"then run `xsam data prepare {self.prepare}`; " if self.prepare else ""
        return f"get it from {self.get}; {made}see docs/datasets.md"


def fits(published: str, records: int) -> bool:
    """A wrong file or split is far off; the slack is for repeats (2 %) and for rounded totals (5 %)."""
    low, high = {"≤": (0.98, 1), "≈": (0.95, 1.05)}.get(published[0], (1, 1))
    number = published.lstrip("≤≈").replace(",", "")
    return published == "?" or low * int(number) <= records <= high * int(number)


_COCO = "cocodataset.org: "
_REFER = f"github.com/lichengunc/refer; {_COCO}train2014"
_KINDS, _MAPS = ("point", "scribble", "box", "mask"), ("panoptic", "instance", "semantic")

DATASETS: Mapping[str, Dataset] = {
    "shapes": Dataset("made on the spot", "shapes", configs="configs/shapes/stage"),
    "coco": Dataset(f"{_COCO}train2017, val2017, annotations_trainval2017, panoptic_annotations_trainval2017", "coco",
        {"coco_panoptic": "≈118,287"}, {f"coco_{kind}": "≈5,000" for kind in _MAPS}),
    "llava_pretrain": Dataset("huggingface.co: liuhaotian/LLaVA-Pretrain", train={"llava_pretrain": "≈558,128"}),
    "llava_instruct": Dataset(train={"llava_instruct": "≈665,298"},
        get="huggingface.co: liuhaotian/LLaVA-Instruct-150K; images: COCO, GQA, OCR-VQA, TextVQA, Visual Genome"),
    "refcoco": Dataset(_REFER, "refer", {"refcoco": "≈16,994"},
        {"refcoco_val": "≤10,834", "refcoco_testA": "≤5,657", "refcoco_testB": "≤5,095"}),
    "refcoco+": Dataset(_REFER, "refer", {"refcoco_plus": "≈16,992"},
        {"refcoco+_val": "≤10,758", "refcoco+_testA": "≤5,726", "refcoco+_testB": "≤4,889"}),
    "refcocog": Dataset(_REFER, "refer", {"refcocog": "≈21,899"},
        {"refcocog_val": "≤4,896", "refcocog_test": "≤9,602"}),
    "grefcoco": Dataset(f"github.com/henghuiding/gRefCOCO; {_COCO}train2014", "refer",
        benchmarks={f"grefcoco_{split}": "?" for split in ("val", "testA", "testB")}),
    "reasonseg": Dataset("github.com/dvlab-research/LISA", "", {"reasonseg": "239"},
        {"reasonseg_val": "200", "reasonseg_test": "779", "reasonseg_test_short": "?", "reasonseg_test_long": "?"}),
    "grandf": Dataset("huggingface.co: MBZUAI/GranD-f; images: COCO 2014 and 2017, Flickr30k",
        train={f"gcg_{part}": "?" for part in ("grandf", "refcocog", "psg", "flickr")},
        benchmarks={"gcg_val": "≈2,500", "gcg_test": "≈5,000"}),
    "coco_vgd": Dataset("huggingface.co: hao9610/X-SAM, vgdseg_annotations", "vgd",
        {"coco_vgd": "≈117,266"}, {f"vgd_{kind}": "≈4,952" for kind in (*_KINDS, "cross_image")}),
    "coco_interactive": Dataset("github.com/zamling/PSALM: PSALM_data.zip",
        benchmarks={f"interactive_{kind}": "?" for kind in _KINDS}),
    "ade20k": Dataset("sceneparsing.csail.mit.edu: ADEChallengeData2016.zip, annotations_instance.tar", "ade20k",
        benchmarks={f"ade20k_{kind}": "≈2,000" for kind in _MAPS}),
    "cityscapes": Dataset("cityscapes-dataset.com: leftImg8bit_trainvaltest, gtFine_trainvaltest", "cityscapes",
        benchmarks={"cityscapes_semantic": "≈500"}),
    "pascal_context": Dataset("PASCAL VOC 2010 and PASCAL-Context, label maps by mmsegmentation's converter",
        benchmarks={"pc59_semantic": "≈5,105"}),
    "voc2012": Dataset("host.robots.ox.ac.uk/pascal/VOC: VOCtrainval_11-May-2012.tar",
        benchmarks={"voc_semantic": "≈1,449"}),
    "chat": Dataset("github.com/open-compass/VLMEvalKit: the tables that it downloads", benchmarks={"mme": "≈2,374",
        "mmbench_en_dev": "≈4,329", "seedbench_image": "≈14,233", "pope": "≈5,127", "ai2d_test": "≈3,088"}),
}  # fmt: skip
