"""Reading and resizing of images: fixed geometry, damaged files, and the recorded preprocessing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xsam.data.images import fit_frame, image_source, longest_side_size, read_image, vision_image
from xsam.data.masks import pack, pad_ids, resize_ids, unpack
from xsam.structures import BadSample, UserError

RECORDED = Path(__file__).parents[2] / "../shared/parity/s1.preprocess.safetensors"


@pytest.mark.parametrize(
    "size, side, expected",
    [((480, 640), 1024, (768, 1024)), ((427, 640), 1024, (683, 1024)), ((3, 2), 5, (5, 3)), ((1, 900), 64, (1, 64))],
)
def test_longest_side_size(size, side, expected):
    assert longest_side_size(*size, side) == expected


@pytest.mark.parametrize("mode, pixel", [("L", 200), ("RGBA", (200, 200, 200, 0)), ("P", 5), ("1", 1), ("I;16", 51200)])
def test_every_mode_reads_as_rgb(tmp_path, mode, pixel):
    image = Image.new(mode, (3, 2), pixel)
    if mode == "P":
        image.putpalette([200] * 768)
    image.save(tmp_path / "a.png")
    expected = 255 if mode == "1" else 200
    assert (read_image(tmp_path / "a.png") == np.full((2, 3, 3), expected, np.uint8)).all()


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("keep", [0, 10, 60, -40])
def test_a_damaged_file_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"broken.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadSample, match=r"broken\.\w+: cannot be read as an image"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadSample, match=r"no\.png: cannot be read as an image \(No such file"):
        read_image(tmp_path / "no.png")


def test_fit_frame_pads_right_and_below():
    frame, size = fit_frame(np.full((20, 40, 3), 9, np.uint8), 8)
    assert size == (4, 8)
    assert (frame[:, :4] == 9).all()
    assert (frame[:, 4:] == 0).all()


def test_vision_image_pads_with_grey_around_the_centre():
    image = np.full((2, 6, 3), 200, np.uint8)
    padded = vision_image(image, 6, "pad", "bicubic")
    assert (padded[:, 2:4] == 200).all()
    assert (padded[:, :2] == 127).all()
    assert (padded[:, 4:] == 127).all()
    assert (vision_image(image, 6, "squash", "bilinear") == 200).all()


@pytest.mark.skipif(not RECORDED.exists(), reason="recorded tensors are not here")
def test_recorded_preprocessing_is_reproduced():
    from safetensors.numpy import load_file

    recorded = load_file(RECORDED)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32).reshape(2, 3, 1, 1)
    for i, expected in enumerate(recorded["processed.extra_pixel_values"]):
        side = expected.shape[-1]
        frame, (h, w) = fit_frame(recorded[f"raw_image.{i}"], side)
        normalised = (frame.astype(np.float32) / 255 - mean) / std
        normalised[:, h:], normalised[:, :, w:] = 0, 0
        np.testing.assert_allclose(normalised, expected, rtol=0, atol=1e-6)

        segments = pack(recorded[f"raw_masks_u8.{i}"].astype(bool))
        ids = pad_ids(resize_ids(segments.ids, h, w), side)
        masks = unpack(type(segments)(ids, segments.count))
        assert (masks == recorded[f"processed.mask_labels_u8.{i}"].astype(bool)).all()


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.mark.parametrize(
    "picture",
    [
        PIXELS,
        PIXELS[:, ::-1][:, ::-1],
        Image.fromarray(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
        (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).requires_grad_(),
        Image.fromarray(np.dstack([PIXELS, np.zeros((5, 7), np.uint8)])),
    ],
)
def test_pixels_come_through_unchanged(picture):
    assert (read_image(image_source(picture)) == PIXELS).all()


def test_other_pictures_as_sources(tmp_path):
    assert image_source("a/b.png") == "a/b.png" == image_source(Path("a/b.png"))
    gray = PIXELS[..., 0]
    for picture in (gray, Image.fromarray(gray), Image.fromarray(gray.astype(np.uint16) * 256)):
        assert (read_image(image_source(picture)) == gray[..., None]).all()
    Image.fromarray(np.tile(PIXELS, (20, 20, 1))).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    with pytest.raises(BadSample, match="the image: cannot be read as an image"):
        image_source(Image.open(tmp_path / "b.jpg"))


@pytest.mark.parametrize(
    "picture, named",
    [
        (PIXELS.astype(float), r"ndarray float64 \[5, 7, 3\]"),
        (PIXELS[None], r"ndarray uint8 \[1, 5, 7, 3\]"),
        (PIXELS.transpose(2, 0, 1), r"ndarray uint8 \[3, 5, 7\]"),
        (PIXELS[:0], r"\[0, 7, 3\]"),
        (torch.from_numpy(PIXELS), r"Tensor torch.uint8 \[5, 7, 3\]"),
        (torch.full((3, 4, 4), 1.5), "Tensor torch.float32"),
        (torch.full((3, 4, 4), torch.nan), "Tensor torch.float32"),
        (torch.zeros(3, 0, 4), r"\[3, 0, 4\]"),
        (torch.zeros(4, 4), r"\[4, 4\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "torch.int64"),
        (None, "NoneType"),
        (b"bytes", "bytes"),
        ([1, 2], "list"),
    ],
)
def test_what_is_no_picture_is_one_line(picture, named):
    with pytest.raises(UserError, match=f"an image is a path, .*, not .*{named}"):
        image_source(picture)
