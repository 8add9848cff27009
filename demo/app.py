"""The page: an image to point at, below it the questions, beside it the answer. State is per visitor and stays on the
server; what a browser sends is checked here, and what it gets is escaped. No file is written or served."""

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import gradio as gr
import numpy as np
import PIL.Image

from xsam.api import XSam
from xsam.result import Result
from xsam.structures import BadSample, UserError
from xsam.tasks.generic import KINDS
from xsam.visualize import color

from .images import BYTES, data_uri, decode

SIDE = 640  # of a picture on the screen, in pixels
WORDS, NAMES, PROMPTS, POINTS = 500, 100, 16, 1000  # letters of a text, categories, prompts, points of one: at most
TURNS = 10  # of a conversation that the model is told
HTML, JS, CSS = ((Path(__file__).parent / name).read_text() for name in ("canvas.html", "canvas.js", "page.css"))
SWATCHES = (f"#masks label:nth-of-type({n + 1})::before {{ background: rgb{color(n)} }}" for n in range(NAMES))
LOOK = {
    "primary_hue": "indigo",
    "neutral_hue": "slate",
    "spacing_size": "sm",
    "font": "system-ui",
    "font_mono": "monospace",
}
STYLE = {"css": "\n".join([CSS, *SWATCHES]), "theme": gr.themes.Default(**LOOK)}
CHOOSE = """element.onclick = (event) => {
  const button = event.target.closest("button");
  if (button) trigger("select", { base64: button.firstChild.src.split(",")[1] });
};"""
DOWNLOAD = "([name, uri]) => { Object.assign(document.createElement('a'), { download: name, href: uri }).click(); }"
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
ASK: dict[str, Any] = QUIET | {"concurrency_id": "model", "concurrency_limit": 1}

Image: TypeAlias = np.ndarray | None  # of a visitor, uint8[H, W, 3]
Talk: TypeAlias = list[tuple[str, str, str]]  # role, what the model is told ("": nothing), what is shown (HTML)
Shown: TypeAlias = tuple[Any, ...]  # new values of components


@dataclass(frozen=True)
class Examples:
    """JPEG files to begin with, and names to choose from."""

    images: Sequence[Path] = ()
    things: Sequence[str] = ()
    stuff: Sequence[str] = ()


class Desk:
    """What the page's events do: one at a time, whether the model answers or a file is decoded."""

    def __init__(self, model: XSam, lock: Lock) -> None:
        self.model, self.lock = model, lock

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The mistakes of a user become messages on the page."""
        try:
            with self.lock:
                yield
        except (UserError, BadSample) as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None

    def segment(self, image: Image, things: Any, stuff: Any, kind: str, score: float) -> Shown:
        with self.asking():
            things, stuff = ([words(name) for name in names or ()] for names in (things, stuff))
            if len(things) + len(stuff) > NAMES:
                raise UserError(f"at most {NAMES} categories at once")
            return shown(self.model.segment(present(image), things=things, stuff=stuff, kind=kind, score=score))

    def find(self, task: str, image: Image, text: Any, option: bool, score: float) -> Shown:
        """task: "refer", its option: all that fits; or "reason", its option: an explanation first."""
        with self.asking():
            options = {"several" if task == "refer" else "explain": option, "score": score}
            return shown(getattr(self.model, task)(present(image), words(text), **options))

    def interact(self, image: Image, drawn: Any) -> Shown:
        with self.asking():  # what was cleared has no answer
            return shown(self.model.interact(present(image), **prompts(drawn)[-1]) if drawn else None)

    def ground(self, image: Image, reference: Image, drawn: Any, score: float) -> Shown:
        with self.asking():
            pixels, other = present(image), present(reference)
            return shown(self.model.ground(pixels, prompts(drawn), reference=other, score=score))

    def describe(self, image: Image, talk: Talk) -> Shown:
        with self.asking():
            result = self.model.describe(present(image))
        talk = [*talk, ("user", "", "Describe the image."), ("assistant", "", phrases(result))]
        return *shown(result), talk, transcript(talk)

    def chat(self, image: Image, text: Any, talk: Talk) -> Iterator[tuple[str, Talk, str]]:
        """Gives the text field, the conversation and its HTML again and again, while the answer is made."""
        with self.asking():
            told = [{"role": role, "content": content} for role, content, _ in talk if content][-2 * TURNS :]
            messages = [*told, {"role": "user", "content": words(text)}]
            pieces = self.model.chat(present(image), messages, stream=True)
        asked, answer = [*talk[-8 * TURNS :], ("user", text, escape(text))], ""
        while piece := self.piece(pieces):
            answer += piece
            yield "", talk, transcript([*asked, ("assistant", "", escape(answer))])
        if not answer.strip():  # silence cannot be told the model, nor can its question
            asked[-1] = ("user", "", escape(text))
        talk = [*asked, ("assistant", answer.strip(), escape(answer) or "<i>no answer</i>")]
        yield "", talk, transcript(talk)

    def piece(self, pieces: Iterator[str]) -> str:
        """The next that is not empty, or "" at the end. Nothing is locked between two: a visitor may be gone."""
        with self.asking():
            return next(filter(None, pieces), "")

    def open(self, event: gr.EventData) -> Shown:
        """A new image: its pixels, its canvas, no answer, no conversation."""
        return *self.open_reference(event), *shown(), [], transcript([])

    def open_reference(self, event: gr.EventData) -> Shown:
        with self.asking():
            try:
                data = base64.b64decode(event._data["base64"])
            except (TypeError, KeyError, ValueError):
                raise UserError("no file came; try again") from None
            pixels = decode(data, shrink=True)
        height, width = pixels.shape[:2]
        picture = data_uri(PIL.Image.fromarray(pixels), 2 * SIDE)
        return pixels, gr.HTML(value=[], picture=picture, width=width, height=height)


def present(image: Image) -> np.ndarray:
    if image is None:
        raise UserError("an image is missing; upload one")
    return image


def words(text: Any) -> str:
    if not isinstance(text, str) or len(text) > WORDS:
        raise UserError(f"a text has at most {WORDS} letters")
    return text


def prompts(drawn: Any) -> list[dict[str, Any]]:
    """What a canvas gives; `typed_prompt` looks at the numbers. A stranger may not name the file of a mask."""
    rows = drawn if isinstance(drawn, list) else []
    known = [row for row in rows if isinstance(row, dict) and [*row] in (["point"], ["box"], ["scribble"])]
    if not 0 < len(known) == len(rows) <= PROMPTS:
        raise UserError(f"draw a point, a box or a stroke on the image first, {PROMPTS} at most")
    if not all(isinstance(at, list) and len(at) <= POINTS for row in known for at in row.values()):
        raise UserError(f"a stroke has at most {POINTS} points")
    return known


def shown(result: Result | None = None) -> Shown:
    """An answer for the components `result`, `view`, `text` and `masks`."""
    found = result.found[:NAMES] if result else ()
    choices = [(f"{each.label} {each.score:.2f}", number) for number, each in enumerate(found)]
    kept = [*range(len(choices))]
    return result, picture(result, kept), phrases(result), gr.CheckboxGroup(choices, value=kept, visible=bool(kept))


def drawing(result: Result, kept: Sequence[int], side: int = SIDE) -> PIL.Image.Image:
    """Only some of the masks, in the colours that they have among all."""
    blank = np.zeros(result.image.shape[:2], bool)
    found = (each if n in kept else replace(each, mask=blank) for n, each in enumerate(result.found))
    return replace(result, found=tuple(found)).picture(title=False, side=side)


def picture(result: Result | None, kept: Sequence[int]) -> str:
    """As much of an answer as fits on the screen."""
    if result is None:
        return '<p class="xs-empty">The answer appears here.</p>'
    step = -(-max(result.image.shape) // SIDE)
    found = tuple(replace(each, mask=each.mask[::step, ::step]) for each in result.found)
    height, width = result.image[::step, ::step].shape[:2]
    image = np.asarray(PIL.Image.fromarray(result.image).resize((width, height)))
    uri = data_uri(drawing(replace(result, image=image, found=found), kept, SIDE // 2), 2 * SIDE)
    names = escape(", ".join(label for n, label in enumerate(result.labels) if n in kept)) or "no masks"
    return f'<img class="xs-answer" alt="The image with {names}" src="{uri}">'


def phrases(result: Result | None) -> str:
    """The text of an answer, phrases on the colours of their masks, or how much was found."""
    if result is None:
        return ""
    many = f"{len(result.found)} mask{'s' * (len(result.found) != 1)}" if result.found else "Nothing was found"
    parts, end = list[str](), 0
    for (first, last), number in sorted((found.span, number) for number, found in enumerate(result.found)):
        if end <= first < last:
            ink = "rgb({} {} {} / 45%)".format(*color(number))
            phrase = escape(result.text[first:last])
            parts += [escape(result.text[end:first]), f'<mark style="background: {ink}">{phrase}</mark>']
            end = last
    return f"<p>{''.join(parts)}{escape(result.text[end:])} <small>{many}, {result.seconds:.2f} s</small></p>"


def transcript(talk: Talk) -> str:
    rows = "".join(f'<div class="xs-{role}">{html}</div>' for role, _, html in talk)
    return f'<div role="log" aria-label="Conversation">{rows or "Ask something about the image."}</div>'


def as_png(result: Result | None, kept: Sequence[int]) -> list[str]:
    """Name and URI of a file, for `DOWNLOAD`."""
    return ["xsam.png", data_uri(drawing(finished(result), kept))]


def as_coco(result: Result | None, kept: Sequence[int]) -> list[str]:
    found = tuple(each for number, each in enumerate(finished(result).found) if number in kept)
    content = json.dumps(replace(finished(result), found=found).to_coco()).encode()
    return ["xsam.json", f"data:application/json;base64,{base64.b64encode(content).decode()}"]


def finished(result: Result | None) -> Result:
    if result is None:
        raise gr.Error("There is no answer to download yet.", print_exception=False)
    return result


def page(model: XSam, lock: Lock, examples: Examples) -> gr.Blocks:
    """The page. lock: is held while the model answers or a file is decoded."""
    desk = Desk(model, lock)
    with gr.Blocks(title="X-SAM", fill_width=True, analytics_enabled=False) as blocks:
        image, result, talk = gr.State(), gr.State(), gr.State([])
        gr.HTML("<h1>X-SAM</h1> Name it, describe it, or point at it.", elem_id="head")
        with gr.Row():
            with gr.Column():
                canvas = pointing("Image", several=False)
                files = [base64.b64encode(path.read_bytes()).decode() for path in examples.images]
                buttons = (
                    f'<button aria-label="Example {n}"><img alt="" src="data:image/jpeg;base64,{file}"></button>'
                    for n, file in enumerate(files, start=1)
                )
                strip = gr.HTML("".join(buttons), visible=bool(files), elem_id="examples", js_on_load=CHOOSE)
                tabs = gr.Tabs()
            with gr.Column(elem_id="right"):
                with gr.Row(elem_id="downloads"):
                    png, coco = (gr.Button(f"Download {kind}", size="sm") for kind in ("PNG", "COCO JSON"))
                view, text = gr.HTML(picture(None, ()), elem_id="answer"), gr.HTML(elem_id="text")
                masks = gr.CheckboxGroup([], label="Masks", visible=False, elem_id="masks")
        answer = [result, view, text, masks]
        with tabs:
            log = questions(desk, examples, image, answer, talk)
        for event in (canvas.upload, strip.select):
            event(desk.open, None, [image, canvas, *answer, talk, log], **ASK)
        canvas.submit(desk.interact, [image, canvas], answer, **ASK)
        masks.input(picture, [result, masks], view, **QUIET)
        for button, make in ((png, as_png), (coco, as_coco)):
            file = gr.JSON(visible=False)
            button.click(make, [result, masks], file, **QUIET).success(None, file, js=DOWNLOAD, **QUIET)
    blocks.state_session_capacity = 32  # visitors whose images are kept
    return blocks.queue(max_size=32, api_open=False)


def pointing(label: str, several: bool) -> gr.HTML:
    """An image to upload, and to draw points, boxes and strokes on; its value is the prompts."""
    return gr.HTML(
        [], label=label, elem_id=label.lower(), html_template=HTML, js_on_load=JS, apply_default_css=False,
        picture="", width=1, height=1, bytes=BYTES, several=several,
    )  # fmt: skip


def ask(text: str, least: tuple[float, str], inputs: list[Any], fn: Any, answer: list[Any], *events: Any) -> None:
    """A threshold and a button; a threshold that is moved asks again."""
    with gr.Row():
        slider = gr.Slider(0, 1, least[0], step=0.01, label=least[1], buttons=[])
        button = gr.Button(text, variant="primary")
    gr.on([button.click, slider.release, *events], fn, [*inputs, slider], answer, **ASK)


def questions(desk: Desk, examples: Examples, image: gr.State, answer: list[Any], talk: gr.State) -> gr.HTML:
    """The tabs; returns the component of the conversation."""
    with gr.Tab("Names"):
        with gr.Row():
            names = [
                gr.Dropdown(
                    choices, value=choices, label=f"{label}: type a name and press Enter", multiselect=True,
                    allow_custom_value=True, max_choices=NAMES,
                ) for label, choices in (("Things", [*examples.things]), ("Stuff", [*examples.stuff]))
            ]  # fmt: skip
        kind = gr.Radio(KINDS, value=KINDS[0], label="Kind of segmentation")
        ask("Segment", (0.5, "Least probability"), [image, *names, kind], desk.segment, answer)
    for name, task, label, example, option in (
        ("Expression", "refer", "What should be found?", "the small green ring", "Everything that fits"),
        ("Question", "reason", "Which thing answers this?", "what could roll away?", "Explain before the mask"),
    ):
        with gr.Tab(name):
            text = gr.Textbox(label=label, placeholder=example, max_length=WORDS)
            inputs, find = [image, text, gr.Checkbox(label=option)], partial(desk.find, task)
            ask("Find", (0.0, "Least probability, else absent"), inputs, find, answer, text.submit)
    with gr.Tab("Reference"):
        other = gr.State()
        gr.HTML("Point at things in another image: all of their kinds are found in the image above.")
        drawn = pointing("Reference", several=True)
        drawn.upload(desk.open_reference, None, [other, drawn], **ASK)
        ask("Find the same", (0.5, "Least probability"), [image, other, drawn], desk.ground, answer)
    with gr.Tab("Chat"):
        log = gr.HTML(transcript([]), elem_id="log", autoscroll=True)
        with gr.Row():
            text = gr.Textbox(label="Message", placeholder="How many circles are there?", max_length=WORDS, scale=2)
            send, describe = gr.Button("Send", variant="primary"), gr.Button("Describe")
        gr.on([send.click, text.submit], desk.chat, [image, text, talk], [text, talk, log], **ASK)
        describe.click(desk.describe, [image, talk], [*answer, talk, log], **ASK)
    return log
