"""`POST /v1/segment`: answers in the form that its OpenAPI says, and no request makes the server fail."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("schemathesis")
pytest.importorskip("gradio", reason="the page needs the extra `demo`")
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from starlette.testclient import TestClient

from demo import app, server
from xsam.data.masks import decode_rle


@pytest.fixture(scope="module")
def service(model: Any) -> Any:
    return server.build(model, app.Examples())


@pytest.fixture(scope="module")
def client(service: Any) -> TestClient:
    return TestClient(service, raise_server_exceptions=False)


@pytest.fixture
def picture(photo: Path) -> str:
    return base64.b64encode(photo.read_bytes()).decode()


def test_every_task_answers(client: TestClient, picture: str, asked: list[Any]) -> None:
    questions: list[dict[str, Any]] = [
        {"task": kind, "things": ["ring", "star"], "stuff": ["sky"], "score": 0.0}
        for kind in ("panoptic", "instance", "semantic")
    ]
    questions += [
        {"task": "refer", "text": "the ring"},
        {"task": "reason", "text": "what rolls?"},
        {"task": "describe"},
    ]
    prompts = [{"point": [40, 40]}, {"box": [10, 10, 50, 50]}, {"scribble": [[10, 10], [20, 30]]}]
    questions += [{"task": "interact", "prompts": [prompt]} for prompt in prompts]
    questions += [{"task": "ground", "prompts": prompts, "reference": picture, "score": 0.0}]
    for question in questions:
        answer = client.post("/v1/segment", json={"image": picture, **question})
        assert answer.status_code == 200, answer.text
        for found in answer.json()["found"]:
            mask = decode_rle(found["segmentation"])
            (x0, y0, x1, y1), (ys, xs) = found["box"], np.nonzero(mask)
            assert mask.shape == (96, 96)
            assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert asked[0] == {"point": (40.0, 40.0)}


@pytest.mark.parametrize("image, status, message", [
    (base64.b64encode(bytes(21 * 2**20)).decode(), 413, ""),
    (base64.b64encode(bytes(20 * 2**20 + 1)).decode(), 422, "20 MB are taken"),
    (3000, 422, "3000 x 3000 pixels"),
    (60000, 422, "no image"),
    (64, 422, "no image"),  # truncated
    (base64.b64encode(b"<svg/>").decode(), 422, "no image"),
    ("/etc/passwd", 422, "no base64"), ("data:image/png;base64,AAAA", 422, "no base64"), ("é", 422, "no base64"),
    ("", 422, "no image"), (None, 422, "image: Input should be a valid string"), ([], 422, "valid string"),
])  # fmt: skip
def test_a_bad_image_is_refused(client: TestClient, image: Any, status: int, message: str, bomb: Any) -> None:
    image = base64.b64encode(bomb(image)).decode() if isinstance(image, int) else image  # of so many pixels
    for task in ({"task": "describe"}, {"task": "refer", "text": "a ring"}):
        answer = client.post("/v1/segment", json={"image": image, **task})
        assert (answer.status_code, message in answer.text) == (status, True), answer.text
        assert len(answer.text) < 400


@pytest.mark.parametrize("body", [
    b"", b"{", b"[" * 100_000, b'{"image": "", "task": "describe", "score": NaN}', b'{"image": "", "task": "x", "\\ud800": 1}',
    b'{"image": "\\ud800", "task": "describe"}', b'{"image": "", "task": "refer", "text": "\\udfff"}', b"9" * 5000,
    b'{"image": "", "task": "interact", "prompts": [{"mask": "/etc/passwd"}]}', b"\xff\xfe",
    b'{"image": "", "task": "interact", "prompts": [{"point": [1e400, 1]}]}',
])  # fmt: skip
def test_a_bad_request_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/segment", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]


def test_too_many_at_a_time_come_later(model: Any, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WAITING", 0)
    answer = TestClient(server.build(model, app.Examples())).post(
        "/v1/segment", json={"image": picture, "task": "describe"}
    )
    assert answer.status_code == 429


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("known", [False, True])
def test_fuzzing_finds_no_failure(service: Any, picture: str, mode: Any, known: bool) -> None:
    """known: with an image that can be read, so that the fuzzing reaches the model."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", service)
    checks = [schemathesis.checks.not_a_server_error, schemathesis.checks.CHECKS.get_one("status_code_conformance")]
    statuses = set()

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=schema["/v1/segment"]["POST"].as_strategy(generation_mode=mode))
    def fuzz(case: Any) -> None:
        if known and isinstance(case.body, dict):
            case.body = case.body | {"image": picture}
        statuses.add(case.call_and_validate(checks=checks).status_code)

    fuzz()
    assert statuses <= {200, 400, 422}
    assert 200 in statuses or not known or mode is GenerationMode.NEGATIVE
