"""Every call of the Python API, on a small model and a CPU, in less than a minute.

    python examples/tour.py [FOLDER] [--checkpoint RUN] [--image FILE] [--other FILE]

The pictures go to FOLDER. The images are of the embedded world."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xsam import XSam
from xsam.config import data_root

images = data_root() / "shapes/examples"
options = argparse.ArgumentParser(description="every call of the Python API")
options.add_argument("folder", nargs="?", type=Path, default=Path("tour"), help="of the pictures; default: tour/")
options.add_argument("--checkpoint", default="", help="run folder or hub name; default: the embedded model")
options.add_argument("--image", default=images / "3.jpg")
options.add_argument("--other", default=images / "2.jpg", help="an image that is asked with a reference")
options = options.parse_args()
image, folder = options.image, options.folder
folder.mkdir(parents=True, exist_ok=True)
kept = {}


def keep(name, result):
    """Write the picture and say what is in it."""
    result.save(folder / f"{name}.png")
    kept[name] = result
    found = ", ".join(f"{one.label} {one.score:.2f}" for one in result.found)
    print(f"{name:12}{1000 * result.seconds:6.0f} ms  {result.text or ''}  {found or 'nothing found'}")
    return result


# A model is a folder of a training run, or a name on the hub.
model = XSam.from_pretrained(options.checkpoint, device="cpu")

# Categories: things are counted, stuff is not. Panoptic, instance and semantic segmentation.
things = ["circle", "square", "triangle", "star", "ring", "cross"]
stuff = ["sky", "grass", "sand", "water"]
panoptic = keep("panoptic", model.segment(image, things=things, stuff=stuff))
keep("instance", model.segment(image, things, kind="instance", score=0.6))
keep("semantic", model.segment(image, things + stuff, kind="semantic"))

# Words: an expression, a question that names nothing, and the reason for its answer.
keep("refer", model.refer(image, "the blue ring"))
keep("absent", model.refer(image, "the red star", score=0.5))  # below the score it counts as absent
keep("several", model.refer(image, "the two triangles", several=True))
keep("reason", model.reason(image, "the shape with four equal sides"))
keep("explain", model.reason(image, "the shape with four equal sides", explain=True))

# Text with masks, and text alone.
keep("describe", model.describe(image))
first = keep("chat", model.chat(image, "How many shapes are there?"))
messages = [
    {"role": "user", "content": "How many shapes are there?"},
    {"role": "assistant", "content": first.text or "none"},
    {"role": "user", "content": "What is the ground?"},
]
print("streamed    ", end="")
for piece in model.chat(image, messages, stream=True):
    print(piece, end="", flush=True)
print()

# Clicks. The object that is pointed at is the first thing found above.
thing = next((one for one in panoptic.found if one.is_thing), panoptic.found[0] if panoptic.found else None)
ys, xs = np.nonzero(thing.mask) if thing else (np.array([48]), np.array([48]))
middle = len(xs) // 2
place, box = (int(xs[middle]), int(ys[middle])), (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
keep("point", model.interact(image, point=place))
keep("points", model.interact(image, points=[place, (int(xs[0]), int(ys[0]))]))
keep("box", model.interact(image, box=box))
keep("scribble", model.interact(image, scribble=[place, (int(xs[-1]), int(ys[-1]))]))
drawn = np.zeros(panoptic.image.shape[:2], bool)
drawn[ys, xs] = True
keep("mask", model.interact(image, mask=drawn))

# More of what a region shows, on the same image and on another one.
keep("ground", model.ground(image, [{"box": box}], labels=["like it"], score=0.6))
keep("cross_image", model.ground(options.other, [{"mask": drawn}], reference=image, labels=["like it"], score=0.6))

# Images may be paths, PIL's, arrays or tensors, and many at once.
pixels = panoptic.image
pictures = [Path(image), Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
for number, result in enumerate(model.refer(pictures, "the blue ring")):
    keep(f"batch_{number}", result)

# One picture of one question of each kind.
shown = ("panoptic", "refer", "several", "reason", "describe", "chat", "point", "cross_image")
tiles = [kept[name].picture(side=384) for name in shown]
width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
sheet = Image.new("RGB", (4 * (width + 16) - 16, 2 * (height + 16) - 16), "white")
for number, tile in enumerate(tiles):
    row, column = divmod(number, 4)
    sheet.paste(tile, (column * (width + 16), row * (height + 16)))
sheet.save(folder / "tour.jpg", quality=90)

# What other tools read.
print("masks", panoptic.masks.shape, "boxes", panoptic.boxes.shape, "labels", panoptic.labels)
annotation = panoptic.to_panoptic(folder / "panoptic_ids.png")
files = {
    "coco": panoptic.to_coco(),
    "panoptic": annotation,
    "json": panoptic.to_json(),
    "labelme": panoptic.to_labelme(),
}
for name, content in files.items():
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    print(f"{name}.json", list(content))
