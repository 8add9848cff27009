"""The embedded world: what it promises, expressions and answers that are true, files that others can read."""

import json
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from world.files import prepare
from world.shapes import (
    CATEGORIES,
    COLOURS,
    HELD_OUT,
    SHAPES,
    SPECIAL_TOKENS,
    TEXTURES,
    compose,
    corpus,
    questions,
    render,
    train_tokenizer,
)
from xsam.data.conversations import Conversations
from xsam.data.masks import decode_rle, read_panoptic_png


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    prepare(root, train=60, val=5)
    return root


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(root)
    return AutoTokenizer.from_pretrained(root)


def test_scenes_are_as_hard_as_promised():
    scenes = [compose(0, "train", i) for i in range(150)]
    counts = [len(scene.things) for scene in scenes]
    assert min(counts) >= 4
    assert max(counts) <= 6
    areas = [thing.area for scene in scenes for thing in scene.things]
    assert np.median(areas) <= 0.08 * 96 * 96
    assert min(areas) >= 64
    duplicates = [len({thing.shape for thing in scene.things}) < len(scene.things) for scene in scenes]
    assert 0.3 < np.mean(duplicates) < 0.5
    for scene in scenes:
        assert (np.bincount(scene.ids.ravel())[:-2] == [thing.area for thing in scene.things]).all()


def test_at_least_sixty_percent_of_every_thing_is_visible():
    for index in range(20):
        scene = compose(1, "train", index, size=192)
        for thing in scene.things:
            alone = {"ring": 2.61, "circle": np.pi, "square": 2.89}.get(thing.shape)
            if alone:
                assert thing.area >= 0.58 * alone * thing.radius**2


def test_a_scene_depends_on_its_key_alone():
    first = compose(3, "val", 7)
    compose(3, "val", 8)
    again = compose(3, "val", 7)
    assert first.things == again.things
    assert (render(first) == render(again)).all()
    for other in (compose(4, "val", 7), compose(3, "train", 7), compose(3, "val", 8)):
        assert other.things != first.things


def test_plain_things_show_their_colour_where_the_ids_say_so():
    for index in range(30):
        scene = compose(0, "train", index)
        image = render(scene).astype(float)
        for number, thing in enumerate(scene.things):
            if thing.texture == "plain":
                colour = np.median(image[scene.ids == number], axis=0)
                nearest = min(COLOURS, key=lambda name: np.abs(colour - COLOURS[name]).sum())
                assert nearest == thing.colour


def test_prepare_does_nothing_twice_and_starts_over_when_interrupted(world):
    image = world / "train/0000001.jpg"
    written = image.stat().st_mtime_ns
    prepare(world, train=60, val=5)
    assert image.stat().st_mtime_ns == written
    before = image.read_bytes()
    image.write_bytes(b"half")
    (world / "prepared.json").unlink()
    prepare(world, train=60, val=5)
    assert image.read_bytes() == before


def test_panoptic_files_agree(world):
    content = json.loads((world / "annotations/panoptic_train.json").read_text())
    assert {c["id"]: c["name"] for c in content["categories"]} == {i: name for name, i in CATEGORIES.items()}
    assert len(content["annotations"]) == len(content["images"]) == 60
    for annotation in content["annotations"][:10]:
        ids = read_panoptic_png(world / "panoptic_train" / annotation["file_name"])
        segments = annotation["segments_info"]
        assert sorted(np.unique(ids)) == sorted(s["id"] for s in segments)
        for s in segments:
            rows, columns = np.nonzero(ids == s["id"])
            assert s["area"] == len(rows)
            x, y, w, h = s["bbox"]
            assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


PAIR = re.compile(rf"({'|'.join(COLOURS)}) (?:(?:{'|'.join(TEXTURES)}) )?({'|'.join(SHAPES)})")


def test_held_out_pairs_are_in_the_novel_scenes_alone(world):
    assert all(Counter(pair[side] for pair in HELD_OUT) == dict.fromkeys(names, 2)
               for side, names in enumerate((SHAPES, COLOURS)))  # fmt: skip
    for split in ("train", "val", "corpus", "novel"):
        seen = {(t.shape, t.colour) for i in range(60) for t in compose(0, split, i).things}
        assert seen == HELD_OUT if split == "novel" else not seen & HELD_OUT
    refs = pickle.loads((world / "refer/refs(shapes).p").read_bytes())
    files = [path for path in world.rglob("*.json") if "novel" not in path.name]
    said = [*corpus(60), *map(json.dumps, refs), *(path.read_text() for path in files)]
    pairs = {(shape, colour) for text in said for colour, shape in PAIR.findall(text)}
    assert len(pairs) == 24
    assert not pairs & HELD_OUT


def test_categories_of_pairs_agree_with_those_of_shapes(world):
    for split, count in (("train", 24), ("val", 24), ("novel", 12)):
        plain, paired = (
            json.loads((world / f"annotations/{n}_{split}.json").read_text()) for n in ("panoptic", "pairs")
        )
        names = [{c["id"]: c["name"] for c in content["categories"]} for content in (plain, paired)]
        assert sum(c["isthing"] for c in paired["categories"]) == count
        assert len(names[1]) == count + 4
        for a, b in zip(plain["annotations"], paired["annotations"], strict=True):
            for first, second in zip(a["segments_info"], b["segments_info"], strict=True):
                assert first["area"] == second["area"]
                assert names[1][second["category_id"]].split()[-1] == names[0][first["category_id"]]
    pairs = {tuple(reversed(c["name"].split())) for c in paired["categories"] if c["isthing"]}
    assert pairs == HELD_OUT


def test_instances_are_valid_for_pycocotools(world):
    coco = COCO(world / "annotations/instances_val.json")
    assert len(coco.imgs) == 5
    for annotation in coco.anns.values():
        assert coco.annToMask(annotation).sum() == annotation["area"]
        assert annotation["category_id"] in {CATEGORIES[name] for name in SHAPES}
    image = coco.imgs[1_000_001]
    assert Image.open(world / "val" / image["file_name"]).size == (image["width"], image["height"])


AXES = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}


def read_things(world: Path) -> dict[int, dict[int, dict]]:
    """Image id -> annotation id -> looks, centre and area, all from the files."""
    content = json.loads((world / "refer/instances.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    things: dict[int, dict[int, dict]] = {}
    for a in content["annotations"]:
        y, x = np.nonzero(decode_rle(a["segmentation"]))
        words = {names[a["category_id"]], *a["attributes"].values()}
        thing = {"words": words, "x": x.mean(), "y": y.mean(), "area": len(x)}
        things.setdefault(a["image_id"], {})[a["id"]] = thing
    return things


def fitting(things: dict[int, dict], words: str) -> list[int]:
    return [i for i, thing in things.items() if set(words.split()) - {"shape"} <= thing["words"]]


def understand(sentence: str, things: dict[int, dict]) -> tuple[str, list[int]]:
    """The kind of an expression and what it can mean, by nothing but its words."""
    relation = re.fullmatch(r"the (.+) (left of|right of|above|below) the (.+)", sentence)
    superlative = re.fullmatch(r"the (largest|smallest|leftmost|rightmost|topmost|lowest) (.+)", sentence)
    if relation:
        words, where, landmark = relation.groups()
        (anchor,) = fitting(things, landmark)
        axis, sign = AXES[where]
        there = [i for i in fitting(things, words) if sign * (things[i][axis] - things[anchor][axis]) > 0]
        return "relation", there
    if superlative:
        word, words = superlative.groups()
        key, sign = {
            "largest": ("area", -1), "smallest": ("area", 1), "leftmost": ("x", 1),
            "rightmost": ("x", -1), "topmost": ("y", 1), "lowest": ("y", -1),
        }[word]  # fmt: skip
        return "superlative", sorted(fitting(things, words), key=lambda i: sign * things[i][key])[:1]
    return "attribute", fitting(things, sentence.removeprefix("the "))


def test_every_expression_means_its_thing_and_no_other(world):
    refs = pickle.loads((world / "refer/refs(shapes).p").read_bytes())
    things = read_things(world)
    kinds: Counter[str] = Counter()
    for ref in refs:
        assert 1 <= len(ref["sentences"]) <= 3
        for sentence in ref["sentences"]:
            assert understand(sentence["sent"], things[ref["image_id"]]) == (ref["kind"], [ref["ann_id"]])
        kinds[ref["kind"]] += 1
    assert len({ref["ann_id"] for ref in refs}) == len(refs) > 0.95 * sum(map(len, things.values()))
    assert 0.4 < kinds["attribute"] / len(refs) < 0.65
    assert min(kinds["relation"], kinds["superlative"]) > 0.1 * len(refs)


def test_the_source_of_relations_has_only_what_takes_comparing_and_only_in_training(world):
    refs = pickle.loads((world / "refer/refs(relations).p").read_bytes())
    things = read_things(world)
    assert {ref["kind"] for ref in refs} == {"relation", "superlative"}
    assert {ref["split"] for ref in refs} == {"train"}
    for ref in refs:
        for sentence in ref["sentences"]:
            assert understand(sentence["sent"], things[ref["image_id"]]) == (ref["kind"], [ref["ann_id"]])


def test_rows_are_numbered_across_scenes(world):
    for file, first in (("flickr_train", 0), ("val_gcg_coco_mask_gt", 1), ("val_gcg_coco_caption_gt", 0)):
        numbers = [row["id"] for row in json.loads((world / f"gcg/{file}.json").read_text())["annotations"]]
        assert numbers == list(range(first, first + len(numbers)))


def test_every_answer_is_right():
    checked: Counter[str] = Counter()
    for index in range(80):
        scene = compose(0, "val", index)
        things = {
            i: {"words": {t.shape, t.colour, t.texture, t.size}, "x": t.centre[0], "y": t.centre[1]}
            for i, t in enumerate(scene.things)
        }
        for question, answer in questions(scene):
            count = re.fullmatch(r"How many (.+) are there\?", question)
            there = re.fullmatch(r"Is there an? (.+)\?", question)
            relation = re.fullmatch(r"Is the (.+?) (left of|right of|above|below) the (.+)\?", question)
            what = re.fullmatch(r"(?:What colour is|Is|What is) the ([a-z ]+?)(?: plain, .+)?\?", question)
            if count:
                words = re.sub(r"(?<=cross)es$|s$", "", count[1])
                assert answer == str(len(fitting(things, words)))
            elif there:
                assert answer == ("yes" if fitting(things, there[1]) else "no")
            elif relation:
                (first,), (second,) = fitting(things, relation[1]), fitting(things, relation[3])
                axis, sign = AXES[relation[2]]
                assert answer == ("yes" if sign * (things[first][axis] - things[second][axis]) > 0 else "no")
            elif question == "What is the ground?":
                assert answer == scene.ground
            else:
                (thing,) = fitting(things, what[1])
                assert answer in things[thing]["words"]
                kind = COLOURS if "colour" in question else TEXTURES if "striped or" in question else SHAPES
                assert answer in kind
            checked[" ".join(question.split()[:2]) + (" (relation)" if relation else "")] += 1
    assert len(checked) == 6
    assert min(checked.values()) >= 30


def test_conversations_are_read_back(world):
    for folder in ("captions", "conversations"):
        read = Conversations(world / folder / "train.json", world)
        assert len(read) == 60
        assert read[0].turns[0].question.startswith("<image>\n")
        assert Path(read[0].image).exists()


def test_tokenizer_layout(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(11)) == list(SPECIAL_TOKENS)
    assert len(tokenizer) == 640
    assert tokenizer.convert_ids_to_tokens([637, 638, 639]) == ["<SEG>", "<p>", "</p>"]
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == 0


def test_any_text_comes_back(tokenizer):
    for text in (
        "<|user|>\n<p>Potted plant</p>, <p>café 窗</p>\t?<|end|>\n<|assistant|>\nIt is <SEG>.<|end|>\n",
        "  two  spaces, don't\n\n",
        *list(corpus(2)),
    ):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_words_of_the_world_are_one_token(tokenizer):
    for word in (*CATEGORIES, *COLOURS, *TEXTURES, "small", "large", "leftmost", "above"):
        assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1
    for word in (*CATEGORIES, *COLOURS, "small", "large"):
        assert len(tokenizer(f"<p>{word}</p>", add_special_tokens=False).input_ids) == 3


def test_tokenizer_is_deterministic(tokenizer, tmp_path):
    train_tokenizer(tmp_path)
    again = json.loads((tmp_path / "tokenizer.json").read_text())
    assert again["model"]["vocab"] == json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
