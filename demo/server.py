"""`xsam demo`: the page of `app.py` and, for annotation tools, `POST /v1/segment` described in /openapi.json. Nothing
but the routes that the page needs is open, and nothing is fetched from elsewhere."""

import base64
import binascii
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import BoundedSemaphore, Lock
from typing import Annotated, Any, Literal

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from gradio import processing_utils
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from xsam import config as configs
from xsam.api import EMBEDDED, XSam
from xsam.structures import BadSample, UserError

from . import app as web
from .images import BYTES, decode

BODY = BYTES * 4 // 3 + 2**20  # of a request: a file in base64 and the rest
WAITING = 8  # requests of `POST /v1/segment` at a time; the others are told to come later
OPEN = re.compile(  # of the routes; gradio has more: they fetch, run, or list what nobody here needs
    r"/(|config|theme\.css|favicon\.ico|manifest\.json|(assets|static)/.*|openapi\.json|v1/segment)"
    r"|/gradio_api/(info|queue/(join|data)|heartbeat/\w+|startup-events|cancel|reset)"
)
HEADERS = {  # also where gradio's page asks for fonts and scripts from elsewhere
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Image = Annotated[str, Field(max_length=BODY, description="An image file in base64: JPEG, PNG, WebP or BMP.")]
Name = Annotated[str, Field(min_length=1, max_length=web.WORDS)]
Names = Annotated[list[Name], Field(max_length=web.NAMES)]
Place = Annotated[float, Field(ge=0, le=65535)]


class Prompt(BaseModel):
    """Exactly one of them, in pixels."""

    model_config = ConfigDict(extra="forbid")
    point: tuple[Place, Place] | None = Field(None, description="x, y")
    box: tuple[Place, Place, Place, Place] | None = Field(None, description="x0, y0, x1, y1; maximum exclusive")
    scribble: list[tuple[Place, Place]] | None = Field(None, min_length=1, max_length=web.POINTS // 2)


class Ask(BaseModel):
    """A question about an image; which fields a task needs stands with them."""

    model_config = ConfigDict(extra="forbid")
    image: Image
    task: Literal["panoptic", "instance", "semantic", "refer", "reason", "describe", "interact", "ground"]
    things: Names = Field([], description="panoptic, instance, semantic: names of things")
    stuff: Names = Field([], description="panoptic, semantic: names of stuff")
    text: str = Field("", max_length=web.WORDS, description="refer: an expression; reason: a question")
    prompts: list[Prompt] = Field([], max_length=web.PROMPTS, description="interact: one; ground: one or more")
    reference: Image | None = Field(None, description="ground: the image of the prompts, if another")
    score: float | None = Field(None, ge=0, le=1, description="least probability of what is found")


class Found(BaseModel):
    model_config = ConfigDict(extra="allow")
    label: str
    score: float
    box: tuple[int, int, int, int] = Field(description="x0, y0, x1, y1 in pixels, maximum exclusive")
    segmentation: dict[str, Any] = Field(description="the mask in COCO's compressed RLE")


class Answer(BaseModel):
    """`Result.to_json`, see docs/api.md."""

    model_config = ConfigDict(extra="allow")
    text: str = Field(description="what the model wrote")
    seconds: float
    found: list[Found]


def answer(model: XSam, ask: Ask) -> dict[str, Any]:
    """Raises UserError or BadSample for what the schema cannot say."""
    image = _pixels(ask.image)
    least: dict[str, Any] = {} if ask.score is None else {"score": ask.score}
    drawn = [prompt.model_dump(exclude_none=True) for prompt in ask.prompts]
    if ask.task in ("refer", "reason"):
        result = getattr(model, ask.task)(image, ask.text, **least)
    elif ask.task == "describe":
        result = model.describe(image)
    elif ask.task == "interact":
        if len(drawn) != 1:
            raise UserError(f"interact takes exactly one prompt, not {len(drawn)}")
        result = model.interact(image, **drawn[0])
    elif ask.task == "ground":
        other = None if ask.reference is None else _pixels(ask.reference)
        result = model.ground(image, drawn, reference=other, **least)
    else:
        result = model.segment(image, things=ask.things, stuff=ask.stuff, kind=ask.task, **least)
    return result.to_json()


def _pixels(image: str) -> Any:
    try:
        return decode(base64.b64decode(image, validate=True), shrink=False)
    except (binascii.Error, ValueError):
        raise UserError("an image is no base64") from None


def build(model: XSam, examples: web.Examples) -> FastAPI:
    """REST and the page, one model call at a time."""
    lock, waiting = Lock(), BoundedSemaphore(WAITING)
    app = FastAPI(title="X-SAM", version="1", docs_url=None, redoc_url=None, max_body_size=BODY)
    refusals = {400: "not JSON", 413: "too large", 422: "cannot be used: `detail` says why", 429: "too many at a time"}

    @app.post("/v1/segment", response_model=Answer, responses={n: {"description": why} for n, why in refusals.items()})
    def segment(ask: Ask) -> dict[str, Any]:
        """Masks for a question about an image, at the size of the image."""
        if not waiting.acquire(blocking=False):
            raise HTTPException(429, "too many questions at a time; try again later")
        try:
            with lock:
                return answer(model, ask)
        except (UserError, BadSample) as error:
            raise HTTPException(422, _clean(str(error))) from None
        finally:
            waiting.release()

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> Response:
        """In one line, without what was sent: that may be large, or no text."""
        rows = [f"{'.'.join(str(part) for part in row['loc'][1:])}: {row['msg']}" for row in error.errors()[:3]]
        return JSONResponse({"detail": _clean("; ".join(rows))}, 422)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        if not OPEN.fullmatch(request.url.path):
            return Response(status_code=404)
        response = await go_on(request)
        response.headers.update(HEADERS)
        return response

    processing_utils.async_ssrf_protected_download = _no_download
    return gr.mount_gradio_app(
        app, web.page(model, lock, examples), "/", show_error=False, ssr_mode=False,
        run_history=False, footer_links=[], allowed_paths=[], enable_monitoring=False, **web.STYLE,
    )  # fmt: skip


async def _no_download(*given: Any, **named: Any) -> str:
    """In place of gradio's: it would fetch what a visitor names as a file."""
    raise UserError("files from elsewhere are not taken")


def _clean(text: str) -> str:
    """A short line that can be sent: JSON has letters that UTF-8 has not."""
    return text[:300].encode("utf-8", "replace").decode()


def serve(model: XSam, host: str, port: int) -> None:
    """Run until it is interrupted. Raises UserError for an address that cannot be listened on."""
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: {error}; give another --host or --port") from None
    app = build(model, embedded_examples())
    if host in (local := ["127.0.0.1", "localhost"]):  # no other site may reach it by a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=local)
    print(f"http://{host}:{listener.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run([listener])


def embedded_examples() -> web.Examples:
    """Images of the embedded world and the names that its model knows, where they are."""
    if not (folder := configs.data_root() / EMBEDDED).is_dir():
        return web.Examples()
    return web.Examples(sorted((folder.parent / "examples").glob("*.jpg")), **configs.load(folder)["categories"])
