"""The datasets: what trains and is scored on which, where its files go, and how many records they should have.

docs/datasets.md shows the same table. File names are below `data/`, or `$XSAM_DATA` where it is set.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..structures import UserError


@dataclass(frozen=True, slots=True)
class Count:
    """How many records a row should have. `sign`: "=" exactly, "≤" repeats are left out, "≈" not verified by us."""

    sign: str
    number: int

    def fits(self, records: int) -> bool:
        """A wrong file or split is far off; the slack is for repeats (2 %) and for rounded totals (5 %)."""
        low, high = {"=": (1, 1), "≤": (0.98, 1), "≈": (0.95, 1.05)}[self.sign]
        return low * self.number <= records <= high * self.number

    def __str__(self) -> str:
        return f"{self.sign.strip('=')}{self.number:,}"


UNKNOWN = Count("≈", 0)  # nobody has published it: not compared


@dataclass(frozen=True, slots=True)
class Dataset:
    """A row of the table."""

    name: str
    stages: str  # in which it trains; "-" = it is only scored
    task: str
    files: tuple[str, ...]  # that must be there
    get: str  # where they come from
    prepare: str = ""  # NAME of `xsam data prepare` that makes or checks some of them
    train: Mapping[str, Count] = field(default_factory=dict)  # sources of a mixture, in training samples
    benchmarks: Mapping[str, Count] = field(default_factory=dict)  # in evaluation samples
    configs: str = "configs/xsam_phi3_stage"  # whose rows these are; with none named, all of them


def data_root() -> Path:
    """The folder that `data/` of the configs stands for."""
    return Path(os.environ.get("XSAM_DATA", "data"))


def _same(count: Count, *names: str) -> dict[str, Count]:
    return dict.fromkeys(names, count)


def _refer(name: str, refs: str, get: str, train: Mapping[str, Count], **counts: Count) -> Dataset:
    files = (f"refer/{name}/{refs}", f"refer/{name}/instances.json", "coco/train2014")
    benchmarks = {f"{name}_{split}": count for split, count in counts.items()}
    get, stages = f"{get}; cocodataset.org: train2014", "3" if train else "-"
    return Dataset(name, stages, "referring", files, get, "refer", train, benchmarks)


def _sentences(number: int) -> Count:
    return Count("≤", number)


_KINDS = ("point", "scribble", "box", "mask")
_REFER = "github.com/lichengunc/refer"

DATASETS: Mapping[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "shapes", "1, 2, 3", "all", ("shapes/prepared.json",), "made on the spot", "shapes",
            configs="configs/shapes/stage",
        ),
        Dataset(
            "coco", "1, 3", "generic",
            (
                "coco/train2017", "coco/val2017", "coco/annotations/panoptic_train2017.json",
                "coco/annotations/panoptic_train2017", "coco/annotations/panoptic_val2017.json",
                "coco/annotations/panoptic_val2017", "coco/annotations/instances_val2017.json",
            ),
            "cocodataset.org: train2017, val2017, annotations_trainval2017, panoptic_annotations_trainval2017", "coco",
            {"coco_panoptic": Count("≈", 118_287)},
            _same(Count("≈", 5_000), "coco_panoptic", "coco_instance", "coco_semantic"),
        ),
        Dataset(
            "llava_pretrain", "2", "chat",
            ("llava/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "llava/LLaVA-Pretrain/images"),
            "huggingface.co: liuhaotian/LLaVA-Pretrain", train={"llava_pretrain": Count("≈", 558_128)},
        ),
        Dataset(
            "llava_instruct", "3", "chat",
            (
                "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json", "llava/images/coco", "llava/images/gqa",
                "llava/images/ocr_vqa", "llava/images/textvqa", "llava/images/vg",
            ),
            "huggingface.co: liuhaotian/LLaVA-Instruct-150K; images: COCO, GQA, OCR-VQA, TextVQA, Visual Genome",
            train={"llava_instruct": Count("≈", 665_298)},
        ),
        _refer(
            "refcoco", "refs(unc).p", _REFER, {"refcoco": Count("≈", 16_994)},
            val=_sentences(10_834), testA=_sentences(5_657), testB=_sentences(5_095),
        ),
        _refer(
            "refcoco+", "refs(unc).p", _REFER, {"refcoco_plus": Count("≈", 16_992)},
            val=_sentences(10_758), testA=_sentences(5_726), testB=_sentences(4_889),
        ),
        _refer(
            "refcocog", "refs(umd).p", _REFER, {"refcocog": Count("≈", 21_899)},
            val=_sentences(4_896), test=_sentences(9_602),
        ),
        _refer(
            "grefcoco", "grefs(unc).json", "github.com/henghuiding/gRefCOCO", {},
            val=UNKNOWN, testA=UNKNOWN, testB=UNKNOWN,
        ),
        Dataset(
            "reasonseg", "3", "reasoning",
            ("reasonseg/train", "reasonseg/val", "reasonseg/test", "reasonseg/explanatory/train.json"),
            "github.com/dvlab-research/LISA",
            train={"reasonseg": Count("=", 239)},
            benchmarks={
                "reasonseg_val": Count("=", 200), "reasonseg_test": Count("=", 779),
                **_same(UNKNOWN, "reasonseg_test_short", "reasonseg_test_long"),
            },
        ),
        Dataset(
            "grandf", "3", "grounded conversation",
            (
                "grandf/annotations/train/GranDf_HA_GCG_train.json", "grandf/annotations/train/RefCOCOg_GCG_train.json",
                "grandf/annotations/train/OpenPsgGCG_train.json",
                "grandf/annotations/train/flickr_mergedGT_GCG_train.json",
                "grandf/annotations/val_test/val_gcg_coco_mask_gt.json",
                "grandf/annotations/val_test/val_gcg_coco_caption_gt.json",
                "grandf/annotations/val_test/test_gcg_coco_mask_gt.json",
                "grandf/annotations/val_test/test_gcg_coco_caption_gt.json",
                "grandf/images/GranDf_HA_images/train", "grandf/images/GranDf_HA_images/val_test",
                "grandf/images/flickr30k/images/train", "coco/train2014", "coco/train2017",
            ),
            "huggingface.co: MBZUAI/GranD-f; images: COCO 2014 and 2017, Flickr30k",
            train=_same(UNKNOWN, "gcg_grandf", "gcg_refcocog", "gcg_psg", "gcg_flickr"),
            benchmarks={"gcg_val": Count("≈", 2_500), "gcg_test": Count("≈", 5_000)},
        ),
        Dataset(
            "coco_vgd", "3", "visual grounding",
            (
                "coco/train2017", "coco/val2017", "coco/annotations/coco_vgdseg_train.json",
                "coco/annotations/coco_vgdseg_val.json",
            ),
            "huggingface.co: hao9610/X-SAM, vgdseg_annotations", "vgd",
            {"coco_vgd": Count("≈", 117_266)},
            _same(Count("≈", 4_952), *(f"vgd_{kind}" for kind in (*_KINDS, "cross_image"))),
        ),
        Dataset(
            "coco_interactive", "-", "interactive",
            ("coco/val2017", "coco/annotations/coco_interactive_val_psalm.json"),
            "github.com/zamling/PSALM: PSALM_data.zip",
            benchmarks=_same(UNKNOWN, *(f"interactive_{kind}" for kind in _KINDS)),
        ),
        Dataset(
            "ade20k", "-", "generic, open vocabulary",
            (
                "ade20k/images/validation", "ade20k/annotations/validation", "ade20k/ade20k_panoptic_val.json",
                "ade20k/ade20k_panoptic_val", "ade20k/ade20k_instance_val.json",
            ),
            "sceneparsing.csail.mit.edu: ADEChallengeData2016.zip, annotations_instance.tar", "ade20k",
            benchmarks=_same(Count("≈", 2_000), "ade20k_panoptic", "ade20k_instance", "ade20k_semantic"),
        ),
        Dataset(
            "cityscapes", "-", "generic, open vocabulary",
            ("cityscapes/leftImg8bit/val", "cityscapes/gtFine/val"),
            "cityscapes-dataset.com: leftImg8bit_trainvaltest, gtFine_trainvaltest", "cityscapes",
            benchmarks={"cityscapes_semantic": Count("≈", 500)},
        ),
        Dataset(
            "pascal_context", "-", "generic, open vocabulary",
            (
                "pascal_context/JPEGImages", "pascal_context/SegmentationClassContext",
                "pascal_context/ImageSets/SegmentationContext/val.txt",
            ),
            "PASCAL VOC 2010 and PASCAL-Context, label maps by mmsegmentation's converter",
            benchmarks={"pc59_semantic": Count("≈", 5_105)},
        ),
        Dataset(
            "voc2012", "-", "generic, open vocabulary",
            ("voc2012/JPEGImages", "voc2012/SegmentationClass", "voc2012/ImageSets/Segmentation/val.txt"),
            "host.robots.ox.ac.uk/pascal/VOC: VOCtrainval_11-May-2012.tar",
            benchmarks={"voc_semantic": Count("≈", 1_449)},
        ),
    )
}  # fmt: skip


def find(name: str) -> Dataset:
    """The dataset of that name. Raises UserError where there is none."""
    if name not in DATASETS:
        raise UserError(f"no dataset {name!r}; there is: {', '.join(DATASETS)}")
    return DATASETS[name]
