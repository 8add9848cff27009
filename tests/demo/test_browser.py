"""The page in a real browser. `pytest -m browser`; needs Playwright and Chromium."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs the extra `demo`")
pytest.importorskip("playwright.sync_api")
import uvicorn
from playwright.sync_api import sync_playwright

from demo import app, server

pytestmark = [
    pytest.mark.browser, pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium"),
]  # fmt: skip
SECONDS = 60_000  # ms, of a busy machine


@pytest.fixture(scope="module")
def url(model: Any, photo: Path) -> Iterator[str]:
    service = server.build(model, app.Examples([photo], ["ring", "star"], ["sky"]))
    running = uvicorn.Server(uvicorn.Config(service, port=0, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, url: str) -> Iterator[Any]:
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(SECONDS)
    strange: list[str] = []  # errors, and requests to other places
    page.on("pageerror", lambda error: strange.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else strange.append(r.url))
    page.on("response", lambda r: strange.append(r.url) if r.status >= 400 else None)
    page.goto(url)
    page.get_by_role("button", name="Example 1").click()
    page.locator("#image canvas:visible").wait_for()
    yield page
    page.close()
    assert not strange


def drag(page: Any, area: str, *places: tuple[float, float]) -> None:
    """Over places of an image of 96 x 96 pixels."""
    page.locator(f"{area} canvas").scroll_into_view_if_needed()
    frame = page.locator(f"{area} canvas").bounding_box()
    for number, (x, y) in enumerate(places):
        page.mouse.move(frame["x"] + x / 96 * frame["width"], frame["y"] + y / 96 * frame["height"])
        if not number:
            page.mouse.down()
    page.mouse.up()


def test_chips_of_categories(page: Any) -> None:
    things = page.get_by_label("Things: type a name and press Enter")
    things.fill("<b>moon</b>")
    things.press("Enter")
    page.get_by_label("instance").check()
    page.get_by_label("number input for Least probability").first.fill("0")
    page.get_by_role("button", name="Segment").click()
    page.locator("#answer img").wait_for()
    names = page.locator("#masks label").all_inner_texts()
    assert {name.rsplit(" ", 1)[0] for name in names} <= {"ring", "star", "<b>moon</b>"}
    assert names
    before = page.locator("#answer img").get_attribute("src")
    page.locator("#masks label").first.click()
    page.wait_for_function("src => document.querySelector('#answer img').src !== src", arg=before)


def test_point_box_and_brush(page: Any, asked: list[Any]) -> None:
    drag(page, "#image", (48, 24))
    page.locator("#answer img").wait_for()
    page.get_by_role("button", name="Box", exact=True).click()
    drag(page, "#image", (60, 70), (30, 50), (20, 40))
    while len(asked) < 2:
        page.wait_for_timeout(100)
    for place in ((5, 6), (50, 60)):  # a box by two clicks
        drag(page, "#image", place)
    page.get_by_role("button", name="Brush", exact=True).click()
    drag(page, "#image", (10, 10), (40, 40), (80, 20))
    while len(asked) < 4:
        page.wait_for_timeout(100)
    assert asked[0]["point"] == pytest.approx([48, 24], abs=0.5)
    assert asked[1]["box"] == pytest.approx([20, 40, 60, 70], abs=0.5)
    assert asked[2]["box"] == pytest.approx([5, 6, 50, 60], abs=0.5)
    assert np.array(asked[3]["scribble"])[[0, -1]] == pytest.approx(np.array([[10, 10], [80, 20]]), abs=0.5)
    page.get_by_role("toolbar").get_by_role("button", name="Clear").click()
    page.get_by_text("The answer appears here.").wait_for()


def test_pointing_by_keyboard(page: Any, asked: list[Any]) -> None:
    page.get_by_role("button", name="Box", exact=True).focus()
    page.keyboard.press("Enter")
    page.locator("#image canvas").focus()
    for key in ("Enter", *["Shift+ArrowRight"] * 4, *["Shift+ArrowDown"] * 4, "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.locator("#answer img").wait_for()
    assert asked == [{"box": pytest.approx([48, 48, 67.2, 66.2], abs=0.5)}]


def test_another_image_shows_what_is_meant(page: Any, asked: list[Any], tmp_path: Path) -> None:
    Image.new("RGB", (192, 96), "green").save(tmp_path / "other.png")
    page.get_by_role("tab", name="Reference").click()
    page.get_by_label("Reference: upload a file").set_input_files(tmp_path / "other.png")
    page.locator("#reference canvas:visible").wait_for()
    drag(page, "#reference", (24, 48))
    page.get_by_role("button", name="Find the same").click()
    page.locator("#answer img").wait_for()
    ((regions, shape),) = asked
    assert regions == [{"point": pytest.approx([48, 48], abs=1)}]
    assert shape == (96, 192, 3)


def test_chat_and_coloured_phrases(page: Any, asked: list[Any]) -> None:
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Message").fill("how many <b>?")
    page.keyboard.press("Enter")
    page.get_by_text("two <b>rings</b>").wait_for()
    page.get_by_role("button", name="Describe").click()
    page.locator("#log mark").wait_for()
    assert page.locator("#log mark").inner_text() == "a ring"
    assert page.locator("#log b, #log i").count() == 0
    assert page.locator("#masks label").all_inner_texts() == ["a ring 0.90"]
    swatch = page.locator("#masks label").evaluate("label => getComputedStyle(label, '::before').backgroundColor")
    mark = page.locator("#log mark").evaluate("mark => getComputedStyle(mark).backgroundColor")
    assert mark == swatch.replace("rgb(", "rgba(").replace(")", ", 0.45)")
    assert asked == [["how many <b>?"]]


def test_downloads(page: Any, tmp_path: Path) -> None:
    page.get_by_role("button", name="Download PNG").click()
    page.get_by_text("There is no answer to download yet.").wait_for()
    page.get_by_role("tab", name="Chat").click()
    page.get_by_role("button", name="Describe").click()
    page.locator("#answer img").wait_for()
    for kind in ("PNG", "COCO JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download {kind}").click()
        download.value.save_as(tmp_path / download.value.suggested_filename)
    assert Image.open(tmp_path / "xsam.png").size == (672, 672)
    (row,) = json.loads((tmp_path / "xsam.json").read_text())["annotations"]
    assert row["bbox"] == [20, 20, 40, 40]


def test_bad_uploads_are_refused_with_a_message(page: Any) -> None:
    field = page.get_by_label("Image: upload a file")
    field.set_input_files({"name": "large.png", "mimeType": "image/png", "buffer": bytes(30_000_000)})
    page.get_by_text("This file has 30 MB, too many.").wait_for()
    field.set_input_files({"name": "text.png", "mimeType": "image/png", "buffer": b"hello"})
    page.get_by_text("this is no image that can be read").wait_for()
    assert page.locator("#image canvas").is_visible()  # of the last image
    page.get_by_role("tab", name="Expression").click()
    page.get_by_label("What should be found?").fill("<p><img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    page.get_by_text("<p><img src=x onerror=alert(1)>").first.wait_for()  # as text


def test_all_controls_have_names_and_can_be_reached_by_keyboard(page: Any) -> None:
    for name in ("Names", "Expression", "Question", "Reference", "Chat"):
        page.get_by_role("tab", name=name).click()
        page.get_by_role("tabpanel").wait_for()
        tree = page.locator("body").aria_snapshot()
        roles = ("button", "textbox", "checkbox", "radio", "slider", "spinbutton", "listbox", "application", "tab")
        rows = [row.strip(" -'") for row in tree.splitlines()]
        nameless = [row for row in rows if row.split(" ")[0].rstrip(":") in roles and '"' not in row]
        assert not nameless
    page.locator("body").click(position={"x": 2, "y": 2})
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''"))
    assert {"Point", "Box", "Brush", "Clear", "Example 1", "Send", "Describe", "Download PNG"} <= reached
    assert {"Image: upload a file", "Image: arrow keys move, Enter begins and ends"} <= reached


def test_ten_visitors_at_a_time(chromium: Any, url: str) -> None:
    pages = [chromium.new_page() for _ in range(10)]
    for page in pages:
        page.set_default_timeout(2 * SECONDS)
        page.goto(url)
    for act in ("Example 1", "Segment"):
        for page in pages:
            page.get_by_role("button", name=act).click()
    for page in pages:
        page.locator("#answer img").wait_for()
        assert page.locator(".toast-title").count() == 0
        page.close()
