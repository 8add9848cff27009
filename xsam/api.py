"""The public door: a trained folder in, words and clicks in, masks and text out.

model = XSam.from_pretrained("runs/shapes/stage3")
result = model.refer("picture.png", "the small green ring")"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.utils._pytree import tree_map

from . import config as configs
from .checkpoints.loading import load_model
from .checkpoints.pretrained import RANDOM, fetch
from .data.collate import collate
from .data.images import Picture, image_size, image_source, read_image
from .data.masks import decode_rle
from .data.mixture import key
from .data.prompt import PLACEHOLDERS, Processor
from .data.regions import typed_prompt
from .engine.distributed import say
from .engine.evaluator import answers
from .engine.stages import compile_parts
from .models import lora
from .models.language import decode, quantize
from .models.xsam import ImageFeatures, XSamModel
from .result import Found, Result
from .structures import Batch, Encoded, ItemOutput, Region, Sample, Turn, UserError
from .tasks import generic, interactive, reasoning, referring, visual_grounding
from .tasks import grounded_conversation as gcg

KEPT = 8  # images whose features are kept: about 36 MB each in bf16 at full size
BATCH = 8  # images of one pass
LENGTH = 256  # tokens of a generated answer at most
EMBEDDED = "shapes/model"  # the model that is asked where none is named, below `data/`
STORED = "config.json"  # in the folder of a checkpoint
START = "<image>\n"  # of every conversation

Answer: TypeAlias = Any  # a `Result`; of a list of images a list
Pictures: TypeAlias = Picture | Sequence[Picture]
Row: TypeAlias = tuple[Any, ...]  # of `Found`, the mask as a tensor
Read: TypeAlias = Callable[[str, ItemOutput, Sample], Iterable[Row]]  # the text and the first `<SEG>` of an answer


def load(
    checkpoint: str, config_path: str = "", overrides: Sequence[str] = (), device: str = "", new: Sequence[str] = (),
    dtype: torch.dtype | None = None, bits: int = 0, compile: Sequence[str] = (),
) -> tuple[XSamModel, Processor, dict[str, Any]]:  # fmt: skip
    """Build and load a model, its processor and its config. Raises UserError where there is no config, no weights, or
    weights that do not fit the model or the tokenizer.

    Args:
        checkpoint: a run folder, another file of weights, or a hub name; "random" asks for random weights.
        config_path, overrides: the config to build, by default that of the checkpoint's folder, and its changes.
        new: patterns of what may be missing in the checkpoint, and is random then.
        dtype, bits: of the weights, by default as they are, but float32 on a CPU where they are float16; of the
            language model's alone, 8 or 4 (`quantize`).
        compile: modules for torch.compile."""
    config = config_of(checkpoint, config_path, overrides)
    processor = configs.build(config["processor"])
    torch.manual_seed(0)  # random weights, where they are asked for, are the same each time
    if checkpoint == RANDOM:
        model = configs.build(config["model"])
    else:
        model, report = load_model(
            config["model"], [checkpoint], new, vocabulary=len(processor.tokenizer or ()),
            adapters=lora.of_config(configs.load(stored)) if (stored := fetch(checkpoint) / STORED).is_file() else None,
        )  # fmt: skip
        say(str(report))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is None and device == "cpu" and next(model.parameters()).dtype == torch.float16:
        dtype = torch.float32  # CPUs have no fast float16
    model.to(dtype=dtype)
    if bits and model.llm is not None:
        quantize(model.llm, bits)
    compile_parts(model, compile)
    return model.to(device).eval(), processor, config


def config_of(checkpoint: str, config_path: str = "", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config that `load` builds, the tokenizer of a run folder in it; see there."""
    folder = Path(checkpoint) if checkpoint == RANDOM else fetch(checkpoint)
    stored = folder / STORED
    if not config_path and (checkpoint == RANDOM or not stored.is_file()):
        raise UserError(f"checkpoint {checkpoint} holds no {STORED}; give the config of the model as well")
    config = configs.load(config_path or stored, overrides)
    if "model" not in config or "processor" not in config:
        raise UserError(f"{config_path or stored}: describes no model of X-SAM; give the config of the model")
    chosen = config_path or any(override.startswith("processor.tokenizer=") for override in overrides)
    if not chosen and (folder / "tokenizer_config.json").is_file():
        config["processor"]["tokenizer"] = str(folder)  # a run folder needs nothing else
    return config


class XSam:
    """A model that answers questions about images. What its encoders know of the last `KEPT` images is kept, so the
    next question about one of them is answered faster.

    Every method but `chat` takes an image (see `Picture`; EXIF orientation is not applied) and returns a `Result`, or a
    list of images and returns a list. UserError: words with a tag in them, a prompt that does not fit the image, a
    question the model was not built for. BadSample: an image that cannot be read, a text that is too long."""

    def __init__(self, model: XSamModel, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self._kept: dict[bytes, ImageFeatures] = {}  # by content, of one image each; the last used stands last

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path = "", **options: Any) -> "XSam":
        """From a run folder (weights, config, tokenizer) or hub name, default: the embedded model; options: `load`."""
        return cls(*load(str(checkpoint or embedded_model()), **options)[:2])

    def segment(
        self, images: Pictures, categories: Sequence[str] = (), *, things: Sequence[str] = (),
        stuff: Sequence[str] = (), kind: str = "panoptic", score: float = 0.5,
    ) -> Answer:  # fmt: skip
        """All that the categories name: "panoptic" (no two masks overlap), "instance" or "semantic" (every pixel has
        one category). Each thing has a mask, stuff has one for all of it; `categories` are things, but for "semantic".
        A stage-1 model takes the names of its classes. score: least class probability, of "instance" times the mask's
        own; "semantic" has none, it is 1."""
        things, stuff = ([*things], [*categories, *stuff]) if kind == "semantic" else ([*categories, *things], [*stuff])
        names = [self._words(name) for name in (*things, *stuff)]
        if kind not in generic.KINDS or not names or len({*names}) < len(names):
            raise UserError(f"give a kind of {generic.KINDS} and categories, each once; not {kind!r} and {names}")
        is_thing = [place < len(things) for place in range(len(names))]

        def read(text: str, output: ItemOutput, sample: Sample) -> Iterator[Row]:
            if (known := output.class_logits.shape[1] - 1) != len(names):
                raise UserError(f"the model knows a closed set of {known} classes, {len(names)} were named")
            for mask, column, value in generic.segments(output, kind, is_thing, score):
                yield mask, names[column], value, (0, 0), is_thing[column]

        question = generic.QUESTIONS[0].format(categories=", ".join(f"<p>{name}</p>" for name in names))
        question = question if self.model.llm is not None else ""
        return self._each(images, f"{kind}: {', '.join(names)}", question, generic.ANSWERS[0], read)

    def refer(self, images: Pictures, phrase: str, *, score: float = 0.0, several: bool = False) -> Answer:
        """The one thing that an expression means, or with `several` all of them as one mask. Below a probability of
        `score`, or with `several` where the background is more probable everywhere, the target is absent and nothing is
        found; `ReferringSegmentation` is evaluated by this rule (N_acc, T_acc)."""
        phrase = self._words(phrase)
        return self._each(
            images, phrase, referring.QUESTIONS[0].format(phrase=f"<p>{phrase}</p>"), referring.ANSWERS[0],
            lambda text, output, sample: ((m, phrase, p) for m, p in referring.meant(output, several, score)),
        )  # fmt: skip

    def reason(self, images: Pictures, question: str, *, explain: bool = False, score: float = 0.0) -> Answer:
        """What a question means without naming it; `score` as in `refer`. With `explain` the model first writes why
        (`Result.text`), and then gives a mask or does not."""
        question = self._words(question)
        return self._each(
            images, question, reasoning.question(question, explain), LENGTH if explain else reasoning.ANSWERS[0],
            lambda text, output, sample: ((m, question, p) for m, p in referring.meant(output, score=score)),
        )  # fmt: skip

    def describe(self, images: Pictures, max_new_tokens: int = LENGTH) -> Answer:
        """A caption, and a mask for every phrase of it; an answer in another form has no masks."""
        asked = gcg.QUESTIONS[0]
        return self._each(images, asked, asked, max_new_tokens, lambda text, output, sample: gcg.shown(output, text))

    def interact(self, images: Pictures, **prompt: Any) -> Answer:
        """The one object that a visual prompt shows: `point`, `points`, `box`, `scribble` or `mask`, exactly one, see
        `typed_prompt`."""
        kind = next(iter(prompt), "").removesuffix("s")
        return self._each(
            images, kind, interactive.QUESTIONS[0].format(region="<p><region></p>"), interactive.ANSWERS[0],
            lambda text, output, sample: (
                (m, kind, p) for m, p in interactive.marked(output, decode_rle(sample.regions[0].mask), kind)
            ),
            lambda source: [Region(typed_prompt(prompt, *image_size(source)))],
        )  # fmt: skip

    def ground(
        self, images: Pictures, regions: Sequence[Mapping[str, Any]], *, reference: Picture | None = None,
        labels: Sequence[str] | None = None, score: float = 0.5,
    ) -> Answer:  # fmt: skip
        """Every object of the kinds that regions show: dicts with one prompt of `interact` each, on the image itself or
        on a `reference` image. labels: what they show, default: "region 1", ..; `score` as in `segment`."""
        names = [*(labels or ())] or [f"region {number}" for number in range(1, len(regions) + 1)]
        if not regions or len(names) != len(regions):
            raise UserError(f"give one region or more, and a label for each; here are {len(regions)} and {len(names)}")
        other = "" if reference is None else image_source(reference)
        return self._each(
            images, ", ".join(names),
            visual_grounding.QUESTIONS[0].format(regions=", ".join(["<p><region></p>"] * len(regions))),
            visual_grounding.ANSWERS[0],
            lambda text, output, sample: ((m, names[n], p) for m, n, p in generic.best_first(output, score)),
            lambda source: [Region(typed_prompt(r, *image_size(other or source)), image=other) for r in regions],
        )  # fmt: skip

    def chat(
        self, image: Picture, messages: str | Sequence[Mapping[str, str]], max_new_tokens: int = LENGTH, *,
        stream: bool = False,
    ) -> Answer:  # fmt: skip
        """A free answer in words to a question, or to the last of `{"role": "user" | "assistant", "content": ..}`; with
        `stream` an iterator of its pieces, while it is made."""
        began, source, turns = time.perf_counter(), image_source(image), self._turns(messages)
        pieces = self._pieces(Sample(id=_name(source), image=source, turns=turns), max_new_tokens)
        if stream:
            return pieces
        question, text = turns[-1].question.removeprefix(START), "".join(pieces)
        return Result(read_image(source), _name(source), question, text, (), time.perf_counter() - began)

    def ask(self, samples: Sequence[Sample]) -> list[list[ItemOutput]]:
        """What the decoder gives for every `<SEG>` of samples whose answers are given, in one pass."""
        return [outputs for _, outputs in self._said(samples, 0)]

    @torch.no_grad()
    def _said(self, samples: Sequence[Sample], max_new_tokens: int) -> list[tuple[str, list[ItemOutput]]]:
        """See `answers`; as many tokens are generated, with 0 the answers are those of the samples."""
        encode = self.processor.prompt if max_new_tokens else self.processor
        encoded = [encode(sample, key("predict")) for sample in samples]
        batch, features = self._seen(encoded)
        return answers(self.model, self.processor, encoded, batch, features, max_new_tokens or [""] * len(samples))

    def _each(
        self, images: Pictures, asked: str, question: str, answer: str | int, read: Read,
        drawn: Callable[[str], Sequence[Region]] = lambda source: (),
    ) -> Answer:  # fmt: skip
        """The results for an image or several. question: "" for a closed set. answer: its words, or the most tokens of
        one to be generated."""
        if (stage2 := self.model.mask_decoder is None) or (question and self.model.llm is None):
            raise UserError(f"this model can only {'chat (stage 2)' if stage2 else 'segment (stage 1)'}")
        tokens, words = (answer, "") if isinstance(answer, int) else (0, answer)
        turns = (Turn(START + question, words),) if question else ()
        sources = [image_source(image) for image in (images if isinstance(images, list | tuple) else [images])]
        results = list[Result]()
        for few in (sources[start : start + BATCH] for start in range(0, len(sources), BATCH)):
            began = time.perf_counter()
            samples = [Sample(id=_name(x), image=x, turns=turns, regions=tuple(drawn(x))) for x in few]
            own = []
            for sample, (text, outputs) in zip(samples, self._said(samples, tokens), strict=True):
                rows = read(text, outputs[0], sample) if outputs else ()
                found = tuple(Found(mask.cpu().numpy(), *rest) for mask, *rest in rows if mask.any())
                own.append((read_image(sample.image), sample.id, asked, gcg.caption(text) if tokens else "", found))
            seconds = time.perf_counter() - began
            results += [Result(*row, seconds) for row in own]
        return results if isinstance(images, list | tuple) else results[0]

    def _words(self, text: Any) -> str:
        """What a user wrote. Raises UserError where it is nothing, or has one of the model's tags."""
        tags = self.processor.tokenizer.get_added_vocab() if self.processor.tokenizer else ()
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"words are needed, not {text!r}")
        if found := [tag for tag in (*PLACEHOLDERS, *tags) if tag in text]:
            raise UserError(f"{text!r}: {found[0]} has a meaning of its own; leave it out")
        return text.strip()

    def _turns(self, messages: str | Sequence[Mapping[str, str]]) -> tuple[Turn, ...]:
        """A conversation whose last answer is open."""
        if self.model.llm is None:
            raise UserError("this model has no language model (stage 1), so it cannot chat")
        rows = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        roles = [row.get("role") if isinstance(row, Mapping) else "" for row in rows]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise UserError('messages have "role" and "content"; user and assistant take turns, user is first and last')
        texts = [*(self._words(row.get("content")) for row in rows), ""]
        texts[0] = START + texts[0]
        return tuple(Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True))

    @torch.no_grad()
    def _pieces(self, sample: Sample, max_new_tokens: int) -> Iterator[str]:
        """A generated answer without tags, piece by piece; a character of several tokens comes with its last."""
        batch, features = self._seen([self.processor.prompt(sample, key("predict"))])
        assert self.model.llm is not None
        spliced, tags = self.model.splice(batch, features), self.processor.tag_ids
        answer, text, told = list[int](), "", 0
        for token, _ in decode(self.model.llm, spliced, max_new_tokens, self.processor.stop_ids, tags):
            answer += [id for id in token.tolist() if id not in tags]
            text = self.processor.text(answer)
            if len(text) > told and not text.endswith("\ufffd"):
                yield text[told:]
                told = len(text)
        yield text[told:]

    def _seen(self, encoded: Sequence[Encoded]) -> tuple[Batch, ImageFeatures]:
        """A batch on the model's device, and the features of its images. Those that are not known are encoded."""
        batch = collate(encoded, 1)
        images = zip(batch.pixel_values, batch.seg_pixel_values, batch.seg_sizes, strict=True)
        keys = [blake2b(b"".join(part.numpy() for part in image)).digest() for image in images]
        batch = batch.to(next(self.model.parameters()).device)
        for place, name in enumerate(keys):
            if name not in self._kept:
                own = {n: getattr(batch, n)[[place]] for n in ("pixel_values", "seg_pixel_values", "seg_sizes")}
                self._kept[name] = self.model.decode_pixels(self.model.encode(replace(batch, **own)))
            self._kept[name] = self._kept.pop(name)
        parts = [self._kept[name] for name in keys] or [self.model.encode(batch)]
        self._kept = dict([*self._kept.items()][-KEPT:])
        return batch, tree_map(lambda *each: torch.cat(each), *parts)


def embedded_model() -> Path:
    """The trained tiny model, which is asked where none is named. Raises UserError if it is absent."""
    if not (folder := configs.data_root() / EMBEDDED).is_dir():
        raise UserError(f"there is no embedded model in {folder}; give --checkpoint, a run folder of `xsam train`")
    return folder


def _name(source: str) -> str:
    """The name of an image's file; "" of pixels."""
    return "" if source.startswith("data:") else Path(source).name
