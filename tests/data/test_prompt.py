from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from world.shapes import train_tokenizer
from xsam.data.masks import encode_rle, pack
from xsam.data.prompt import Processor, first_turns
from xsam.structures import IGNORE_INDEX, IMAGE_TOKEN, REGION_TOKEN, BadSample, Region, Sample, Turn, UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder)
    return str(folder)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 60, 3), np.uint8)).save(path)
    return str(path)


TURNS = (
    Turn("<image>\nWhere is <p>the red circle</p>?", "It is <SEG>."),
    Turn("And <p><region></p>?", "Here: <SEG>, a <p>star</p>."),
)


@pytest.mark.parametrize("template", ["phi3", "qwen3", "qwen3_no_thinking"])
def test_only_answers_and_their_end_are_supervised(tokenizer, template):
    processor = Processor(seg_size=32, tokenizer=tokenizer, template=template)
    turns = [processor.tokenize(number, turn) for number, turn in enumerate(TURNS)]
    ids, labels = ([token for part in parts for token in part] for parts in zip(*turns, strict=True))
    tok = processor.tokenizer
    supervised = tok.decode([i for i in labels if i != IGNORE_INDEX])
    end = processor.template.end
    assert supervised == f"It is <SEG>.{end}Here: <SEG>, a <p>star</p>.{end}"
    whole = tok.decode([i for i in ids if i >= 0])
    wrapped = processor.template.user.format("\nWhere is <p>the red circle</p>?")
    assert whole.startswith((tok.bos_token if processor.template.bos else "") + wrapped + "It is <SEG>." + end + "\n")
    assert whole.count("<s>") == int(template == "phi3")  # one bos for the conversation, none for Qwen
    assert ids.count(IMAGE_TOKEN) == ids.count(REGION_TOKEN) == 1


def test_spans_and_segs_are_numbered_in_text_order(tokenizer, image):
    processor = Processor(seg_size=32, vision_size=16, tokenizer=tokenizer)
    region = encode_rle(np.pad(np.ones((4, 4), bool), ((0, 26), (0, 56))))
    masks = pack(np.stack([np.arange(60)[None] < 10 + np.zeros((30, 1)), np.arange(60)[None] > 40 + np.zeros((30, 1))]))
    sample = Sample(
        id="x",
        image=image,
        turns=TURNS,
        regions=(Region(region),),
        masks=masks,
        labels=np.array([0, 1]),
        mask_segs=np.array([0, 1]),
    )
    encoded = processor(sample, key=7)
    tok = processor.tokenizer
    spans = [tok.decode([i for i in encoded.input_ids[encoded.span_ids == n] if i >= 0]) for n in range(3)]
    assert spans == ["<p>the red circle</p>", "<p></p>", "<p>star</p>"]
    assert (encoded.input_ids[encoded.span_ids == 1] == REGION_TOKEN).sum() == 1
    assert encoded.seg_ids[encoded.seg_ids >= 0].tolist() == [0, 1]
    assert (encoded.input_ids[encoded.seg_ids >= 0] == processor.seg_id).all()
    assert encoded.seg_pixel_values.shape == (3, 32, 32)
    assert encoded.pixel_values.shape == (3, 16, 16)
    assert encoded.seg_size == (16, 32)
    assert encoded.image_size == (30, 60)
    assert (encoded.target_ids[0, 16:] == -1).all()
    assert (encoded.target_ids[0, 0] == 0).sum() == 5  # 10 of 60 columns in a frame of 32
    points = encoded.region_points[0]
    assert points.shape == (256, 2)
    assert points.max() < 4 / 60
    again = processor(sample, key=7)
    assert (again.region_points == points).all()


def test_prompt_stops_where_the_answer_begins(tokenizer, image):
    processor = Processor(seg_size=32, tokenizer=tokenizer)
    sample = Sample(id="x", image=image, turns=TURNS[:1])
    prompt = processor.prompt(sample, 0)
    whole = processor(sample, 0)
    n = len(prompt.input_ids)
    assert (whole.input_ids[:n] == prompt.input_ids).all()
    assert (whole.labels[:n] == IGNORE_INDEX).all()
    assert whole.labels[n] != IGNORE_INDEX
    answer = whole.input_ids[n:-1].tolist()
    assert processor.text(answer) == "It is <SEG>."
    answered = processor.answered(prompt, answer)
    assert (answered.input_ids == whole.input_ids[:-1]).all()
    assert (answered.span_ids == whole.span_ids[:-1]).all()
    assert (answered.seg_ids == whole.seg_ids[:-1]).all()
    assert (answered.labels == IGNORE_INDEX).all()
    with pytest.raises(BadSample, match="not balanced"):
        processor.answered(prompt, [processor.open_id])


@pytest.mark.parametrize("text", ["<p>a", "a</p>", "<p><p>a</p></p>", "</p><p>"])
def test_unbalanced_tags_are_refused(tokenizer, text):
    with pytest.raises(BadSample, match="not balanced"):
        Processor(seg_size=8, tokenizer=tokenizer)(Sample(id="x", turns=(Turn("hi", text),)), 0)


def test_what_does_not_fit_is_refused_not_cut(tokenizer, image):
    with pytest.raises(BadSample, match="max_length=5"):
        Processor(seg_size=8, tokenizer=tokenizer, max_length=5)(Sample(id="x", turns=TURNS[:1]), 0)
    wrong = Sample(id="x", image=image, masks=pack(np.ones((1, 3, 3), bool)), labels=np.zeros(1), mask_segs=np.zeros(1))
    with pytest.raises(BadSample, match=r"masks are \(3, 3\), the image is \(30, 60\)"):
        Processor(seg_size=8)(wrong, 0)
    empty = Sample(id="x", image=image, turns=TURNS, regions=(Region(encode_rle(np.zeros((30, 60), bool))),))
    with pytest.raises(BadSample, match="covers no pixel"):
        Processor(seg_size=32, tokenizer=tokenizer)(empty, 0)


def test_training_drops_last_turns_whole(tokenizer, image):
    """Three turns with two, one and one <SEG>; what is left is the same as if the rest had never been there."""
    masks = np.zeros((5, 30, 60), bool)
    for number in range(5):
        masks[number, :, number * 10 : number * 10 + 15] = True  # each overlaps the next
    region = Region(encode_rle(masks[0]))
    turns = (
        Turn("<image>\nWhere are <p>a</p> and <p><region></p>?", "There <SEG>, there <SEG>."),
        Turn("And <p><region></p>?", "Here: <SEG>."),
        Turn("And <p>a much longer phrase of many words</p>?", "Here: <SEG>."),
    )
    sample = Sample(
        id="x", image=image, turns=turns, regions=(region, region), masks=pack(masks),
        labels=np.array([3, 0, 2, 1, 0]), mask_segs=np.array([3, 0, 2, 1, 0]),
    )  # fmt: skip
    two = Sample(
        id="x", image=image, turns=turns[:2], regions=(region, region), masks=pack(masks[1:]),
        labels=np.array([0, 2, 1, 0]), mask_segs=np.array([0, 2, 1, 0]),
    )  # fmt: skip
    one = Sample(
        id="x", image=image, turns=turns[:1], regions=(region,), masks=pack(masks[[1, 3, 4]]),
        labels=np.array([0, 1, 0]), mask_segs=np.array([0, 1, 0]),
    )  # fmt: skip
    whole = Processor(seg_size=32, tokenizer=tokenizer)
    for kept in (sample, two, one):
        length = sum(len(whole.tokenize(number, turn)[0]) for number, turn in enumerate(kept.turns))
        for limit in (length, length + 1):
            processor = Processor(seg_size=32, tokenizer=tokenizer, max_length=limit)
            got, wanted = processor(sample, 5, shorten=True), whole(kept, 5)
            for name in ("input_ids", "labels", "span_ids", "seg_ids", "target_labels", "target_segs", "region_points"):
                assert np.array_equal(getattr(got, name), getattr(wanted, name)), name
            for number in range(len(wanted.target_labels)):
                shown = [(encoded.target_ids == number).any(0) for encoded in (got, wanted)]
                assert (shown[0] == shown[1]).all()
            assert got.target_ids.max() == len(wanted.target_labels) - 1
    with pytest.raises(BadSample, match=f"more than max_length={length - 1}"):
        Processor(seg_size=32, tokenizer=tokenizer, max_length=length - 1)(sample, 5, shorten=True)
    with pytest.raises(BadSample, match=f"more than max_length={length}"):
        Processor(seg_size=32, tokenizer=tokenizer, max_length=length)(sample, 5)  # evaluation: whole, or not at all


def test_dropped_turns_take_their_slots_but_not_what_is_offered():
    region = Region({"size": [2, 2], "counts": "04"}, label=7)
    turns = (Turn("<image> <p><region></p>?", "<SEG>"), Turn("<p><region></p> <p>b</p>?", "<SEG>"))
    sample = Sample(id="x", turns=turns, regions=(region,) * 3, slots=np.array([7, 9]), labels=np.array([0]), mask_segs=np.array([0]), masks=pack(np.ones((1, 2, 2), bool)))  # fmt: skip
    first = first_turns(sample, 1)
    assert first.slots.tolist() == [7]
    assert len(first.regions) == 3  # other samples may be asked about them
    assert first_turns(sample, 2) is sample
    with pytest.raises(BadSample, match="x: the text is too long, and its first turns need phrases of later ones"):
        first_turns(replace(sample, labels=np.array([1])), 1)


def test_wrong_names_are_one_line():
    with pytest.raises(UserError, match="processor.template='llama' is unknown; there is: phi3"):
        Processor(seg_size=8, template="llama")
    with pytest.raises(UserError, match="tokenizer 'no/such/folder' cannot be loaded"):
        Processor(seg_size=8, tokenizer="no/such/folder")


def test_prompt_of_several_turns_leaves_the_last_answer_open(tokenizer, image):
    """A conversation so far is encoded as training encodes it, with its `<SEG>` and phrases."""
    processor = Processor(seg_size=32, tokenizer=tokenizer)
    turns = (*TURNS[:1], Turn("How many?", "2"), Turn("Which?", "the left one"))
    prompt = processor.prompt(Sample(id="x", image=image, turns=turns), 0)
    whole = processor(Sample(id="x", image=image, turns=turns), 0)
    said = processor.tokenizer.decode([i for i in prompt.input_ids if i >= 0])
    assert said.endswith("How many?<|end|>\n<|assistant|>\n2<|end|>\n<|user|>\nWhich?<|end|>\n<|assistant|>\n")
    n = len(prompt.input_ids)
    assert (whole.input_ids[:n] == prompt.input_ids).all()
    assert processor.text(whole.input_ids[n:].tolist()) == "the left one"
    assert (prompt.seg_ids == whole.seg_ids[:n]).all()
    assert (prompt.labels == IGNORE_INDEX).all()
