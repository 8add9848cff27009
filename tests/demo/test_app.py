"""What the page's events do with what a browser may send, without a browser."""

import asyncio
import base64
import json
import resource
import socket
from io import BytesIO
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs the extra `demo`")
import gradio as gr
from starlette.testclient import TestClient

from demo import app, images, server
from xsam import cli
from xsam.result import Found, Result
from xsam.structures import UserError
from xsam.visualize import color


@pytest.fixture(scope="module")
def client(model: Any, photo: Path) -> TestClient:
    return TestClient(server.build(model, app.Examples([photo], ["ring"], ["sky"])), raise_server_exceptions=False)


@pytest.fixture
def desk(model: Any) -> app.Desk:
    return app.Desk(model, Lock())


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image.save(file := BytesIO(), kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"x" * (20 * 2**20 + 1), "20 MB are taken"),
        (b"", "no image"),
        (b"hello", "no image"),
        (9000, "9000 x 9000 pixels"),
        (60000, "no image"),  # PIL refuses it before
        (encoded(Image.new("RGB", (9, 9)), "GIF"), "JPEG, PNG, WEBP, BMP"),
        (encoded(Image.effect_noise((99, 99), 50))[:2000], "no image"),
    ],
)
def test_a_bad_file_is_refused_in_little_memory(data: Any, message: str, bomb: Any) -> None:
    data = bomb(data) if isinstance(data, int) else data
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shrink in (True, False):
        with pytest.raises(UserError, match=message):
            images.decode(data, shrink)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_a_large_photo_is_made_smaller_and_upright_for_the_page_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    large = encoded(Image.new("RGB", (3000, 2000), "red"), "JPEG", exif=exif)
    seen = images.decode(large, shrink=True)
    assert seen.shape[0] > seen.shape[1]
    assert seen.shape[0] * seen.shape[1] <= images.SHRUNK
    with pytest.raises(UserError, match="3000 x 2000 pixels"):
        images.decode(large, shrink=False)
    small = encoded(Image.new("RGB", (30, 20), "red"), "JPEG", exif=exif)
    assert images.decode(small, shrink=True).shape == (30, 20, 3)
    assert images.decode(small, shrink=False).shape == (20, 30, 3)


@pytest.mark.parametrize("drawn", [
    None, [], {}, "x", [{}], [1], [{"mask": "/etc/passwd"}], [{"point": [1, 2], "box": [1, 2, 3, 4]}], [{"point": "/etc"}],
    [{"point": [1, 2]}] * 17, [{"scribble": [[1, 2]] * 1001}],
])  # fmt: skip
def test_strange_prompts_never_reach_the_model(drawn: Any) -> None:
    with pytest.raises(UserError, match="draw a point|at most 1000"):
        app.prompts(drawn)


def test_events_answer(desk: app.Desk, pixels: np.ndarray, asked: list[Any]) -> None:
    result, view, text, masks = desk.interact(pixels, [{"point": [40, 40]}])
    assert asked == [{"point": [40, 40]}]
    assert [found.label for found in result.found] == ["point"] * len(result.found)
    assert (view.startswith("<img") and "mask" in text) or "Nothing" in text
    assert len(masks.choices) == len(result.found)
    assert desk.interact(pixels, [])[0] is None
    for kind in ("panoptic", "instance", "semantic"):
        found = desk.segment(pixels, ["ring", "star"], ["sky"], kind, 0.0)[0].found
        assert {each.label for each in found} <= {"ring", "star", "sky"}
        assert found or kind == "panoptic"
    assert desk.find("refer", pixels, "the ring", False, 0.0)[0].question == "the ring"
    assert desk.find("reason", pixels, "which rolls?", False, 1.0)[0].found == ()
    desk.ground(pixels, pixels[:50], [{"box": [1, 2, 30, 40]}], 0.1)
    assert asked[-1] == ([{"box": [1, 2, 30, 40]}], (50, 96, 3))


def test_a_mistake_is_a_message_and_escaped(desk: app.Desk, pixels: np.ndarray) -> None:
    with pytest.raises(gr.Error, match="an image is missing"):
        desk.find("refer", None, "a ring", False, 0.0)
    with pytest.raises(gr.Error) as refused:
        desk.find("refer", pixels, "<p><img src=x onerror=alert(1)>", False, 0.0)
    assert "<" not in refused.value.message
    assert "&lt;img" in refused.value.message
    for wrong in ("x" * 501, 7, None):
        with pytest.raises(gr.Error, match="at most 500 letters"):
            desk.find("reason", pixels, wrong, False, 0.0)
    with pytest.raises(gr.Error, match="at most 100 categories"):
        desk.segment(pixels, [str(n) for n in range(101)], [], "panoptic", 0.5)
    for data in ({}, None, {"base64": 7}, {"base64": "é"}):
        with pytest.raises(gr.Error, match="no file came"):
            desk.open(SimpleNamespace(_data=data))
    assert not desk.lock.locked()


def test_a_new_image_forgets_the_last(desk: app.Desk, photo: Path, pixels: np.ndarray) -> None:
    data = base64.b64encode(photo.read_bytes()).decode()
    seen, canvas, result, _, text, masks, talk, log = desk.open(SimpleNamespace(_data={"base64": data}))
    assert np.array_equal(seen, pixels)
    assert (canvas.value, canvas.props["width"], canvas.props["height"]) == ([], 96, 96)
    assert (result, text, masks.choices, talk) == (None, "", [], [])
    assert "Ask something" in log


def test_chat_tells_the_model_what_was_said(desk: app.Desk, pixels: np.ndarray, asked: list[Any]) -> None:
    said = desk.chat(pixels, "how many <i>?", [])
    assert "two </div>" in next(said)[2]
    assert not desk.lock.locked()  # who goes away does not stop the others
    *_, (_, talk, log) = said
    assert "how many &lt;i&gt;?" in log
    assert "two &lt;b&gt;rings&lt;/b&gt;" in log
    *_, talk, log = desk.describe(pixels, talk)
    ink = "rgb({} {} {} / 45%)".format(*color(0))
    assert f'<p>&lt;i&gt;<mark style="background: {ink}">a ring</mark>&lt;/i&gt; on sand ' in log
    [*desk.chat(pixels, "sure?", talk)]
    assert asked == [["how many <i>?"], ["how many <i>?", "two <b>rings</b>", "sure?"]]


def result() -> Result:
    masks = np.zeros((3, 60, 90), bool)
    masks[0, :20], masks[1, 20:40], masks[2, 40:] = True, True, True
    found = (Found(mask, name, 0.5) for mask, name in zip(masks, ["<a>", "b", "c"], strict=True))
    return Result(np.full((60, 90, 3), 200, np.uint8), "", "", found=tuple(found))


def test_masks_are_switched_off_and_keep_their_colours() -> None:
    shown = [
        np.asarray(app.drawing(result(), kept).resize((90, 60), Image.Resampling.NEAREST), int)
        for kept in ([0, 1, 2], [1], [])
    ]
    assert (shown[2] == 200).all()
    assert (shown[1][:17] == 200).all()
    assert (shown[1][43:] == 200).all()
    assert (shown[1][22, 80] == shown[0][22, 80]).all()
    assert (shown[0][2, 80] != 200).any()
    view = app.picture(result(), [0, 2])
    assert 'alt="The image with &lt;a&gt;, c"' in view
    name, uri = app.as_coco(result(), [0, 2])
    content = json.loads(base64.b64decode(uri.partition(",")[2]))
    assert (name, [row["name"] for row in content["categories"]]) == ("xsam.json", ["<a>", "c"])
    name, uri = app.as_png(result(), [1])
    assert (name, Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).format) == ("xsam.png", "PNG")
    with pytest.raises(gr.Error, match="no answer"):
        app.as_png(None, [])


@pytest.mark.parametrize("path", [
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=pyproject.toml", "/gradio_api/file=http://example.com/",
    "/gradio_api/proxy=http://example.com/", "/gradio_api/upload", "/monitoring", "/docs",
    "/static/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py",
])  # fmt: skip
def test_no_file_of_the_server_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (403, 404)
    assert client.post(path).status_code in (403, 404, 405)


def test_the_page_names_no_path_and_no_other_site_is_asked(client: TestClient, photo: Path) -> None:
    page = client.get("/")
    for text in (page.text, client.get("/config").text, client.get("/gradio_api/info").text):
        for path in (photo.parents[1], Path.cwd(), Path(gr.__file__).parent):
            assert str(path) not in text
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self' ")
    assert client.post("/gradio_api/queue/join", content=b"x" * (30 * 2**20)).status_code == 413
    named = {"path": "http://127.0.0.1:9/x.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(UserError, match="not taken"):
        asyncio.run(gr.processing_utils.async_move_files_to_cache(named, gr.Textbox(), check_in_upload_folder=True))


def test_without_gradio_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert "pip install -c constraints.txt -e '.[demo]'" in capsys.readouterr().err


def test_an_address_in_use_is_one_line(model: Any) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match="give another --host or --port"),
    ):
        server.serve(model, "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="65535"):
        server.serve(model, "127.0.0.1", 99999)


def test_examples_are_those_of_the_embedded_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    assert server.embedded_examples() == app.Examples()
    monkeypatch.delenv("XSAM_DATA")
    found = server.embedded_examples()
    assert len(found.images) == 8
    assert ("ring" in found.things, "sky" in found.stuff) == (True, True)
