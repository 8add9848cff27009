"""`xsam predict`: pictures with their masks drawn, and the masks as COCO JSON."""

import json
from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..api import BATCH, XSam
from ..data.coco import clean_name
from ..data.images import image_size
from ..result import Result
from ..structures import UserError
from ..tasks.base import build
from ..tasks.generic import KINDS

OPTIONS: dict[str, tuple[str, ...]] = dict.fromkeys(KINDS, ("prompt", "score")) | {
    "refer": ("prompt", "score", "several"), "reason": ("prompt", "score", "explain"), "describe": (),
    "interact": ("regions",), "ground": ("regions", "reference", "prompt", "score"), "chat": ("prompt",),
}  # fmt: skip

FLAGS = {"regions": "--point, --box, --scribble, --mask"}


def predict(
    predictor: XSam, config: dict[str, Any], images: Sequence[str], task: str, out: Path, *, as_json: bool = False,
    **given: Any,
) -> None:  # fmt: skip
    """Answer one question about every image; writes `out/STEM.png`, `out/STEM.json`, for "panoptic" also
    `out/STEM_panoptic.png`; a stem that is not the first of its kind is numbered.

    Args:
        config: gives the names where `prompt` has none: its `categories`, else those of its first generic benchmark.
        images: files, folders and patterns.
        as_json: print a list of `Result.to_json` with the "picture", not a line for each image.
        given: of `OPTIONS`; a prompt for segments is "things, .. ; stuff, ..", for "ground" the names of regions."""
    paths = _files(images)
    given = {name: value for name, value in given.items() if value is not False and value not in (None, "", [])}
    ask = _question(predictor, config, task, given)
    if any(Path(path).resolve().parent == out.resolve() for path in paths):
        raise UserError(f"{out} holds the images; give another folder as --out")
    out.mkdir(parents=True, exist_ok=True)
    taken, rows = set[str](), []
    with tqdm(total=len(paths), desc=task, unit="image", delay=2, disable=None) as bar:
        for start in range(0, len(paths), BATCH):
            few = paths[start : start + BATCH]
            for path, result in zip(few, ask(few), strict=True):
                picture = _write(result, task, out / _stem(path, taken))
                bar.update()
                if as_json:
                    rows.append(result.to_json() | {"picture": str(picture)})
                else:
                    count = f"{len(result.found)} mask{'s' * (len(result.found) != 1)}"
                    bar.write(f"{picture}: {count}" + (f", {result.text!r}" if result.text else ""))
    if as_json:
        print(json.dumps(rows))


def _write(result: Result, task: str, path: Path) -> Path:
    """Write the files of a result, and return that of the picture; `path` has no ending."""
    result.picture(title=task not in KINDS).save(picture := f"{path}.png")
    content = result.to_coco()
    if task == "panoptic":
        content["panoptic"] = result.to_panoptic(f"{path}_panoptic.png")
    Path(f"{path}.json").write_text(json.dumps(content, indent=1))
    return Path(picture)


def _question(predictor: XSam, config: dict[str, Any], task: str, given: dict[str, Any]) -> Callable[[list[str]], Any]:
    """What to ask about a list of images."""
    if strange := given.keys() - {*OPTIONS[task]}:
        words = [", ".join(FLAGS.get(name, f"--{name}") for name in names) for names in ([min(strange)], OPTIONS[task])]
        raise UserError(f"--task {task} has no use for {words[0]}; it takes {words[1] or 'no such option'}")
    prompt, regions = given.pop("prompt", ""), given.pop("regions", [])
    if task in ("refer", "reason", "chat") and not prompt:
        raise UserError(f"--task {task} needs --prompt, the expression or question")
    if task in KINDS:
        things, stuff = _categories(config, prompt)
        return lambda images: predictor.segment(images, things=things, stuff=stuff, kind=task, **given)
    if task == "chat":
        return lambda images: [predictor.chat(image, prompt) for image in images]
    if task == "interact":
        points = [region.get("point") for region in regions]
        shown = (
            {"points": points} if len(points) > 1 and all(points) else dict(pair for r in regions for pair in r.items())
        )
        return lambda images: predictor.interact(images, **shown)
    if task == "ground":
        return lambda images: predictor.ground(images, regions, labels=_names(prompt), **given)
    words = [prompt] if prompt else []
    return lambda images: getattr(predictor, task)(images, *words, **given)


def _categories(config: dict[str, Any], prompt: str) -> list[list[str]]:
    """Names of things, and of stuff."""
    if prompt:
        things, _, stuff = prompt.partition(";")
        return [_names(things), _names(stuff)]
    if "categories" in config:
        return [config["categories"]["things"], config["categories"]["stuff"]]
    for node in config["benchmarks"].values():
        if node["type"].endswith(".GenericSegmentation"):
            task: Any = build(node)
            return [[clean_name(c.name) for c in task.categories if c.is_thing == kind] for kind in (True, False)]
    raise UserError('the config has no generic benchmark with categories; give --prompt "things, ..; stuff, .."')


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _files(given: Sequence[str]) -> list[str]:
    """The images that are meant, each once; those of a folder are found by their endings. Raises UserError where there
    is none, BadSample for a file that is missing or no image: before anything is computed."""
    found: dict[str, None] = {}
    for name in given:
        files = [name]
        if Path(name).is_dir():
            files = [str(file) for file in Path(name).iterdir() if file.suffix.lower() in Image.registered_extensions()]
        elif not Path(name).exists() and set("*?[") & {*name}:
            files = glob(name, recursive=True)
        if not files:
            raise UserError(f"{name}: no image there; give files, folders or patterns such as 'a/*.jpg'")
        found |= dict.fromkeys(sorted(files))
    for file in found:
        image_size(file)
    return [*found]


def _stem(path: str, taken: set[str]) -> str:
    """The name of an image's files, without an ending; no two images write to one file."""
    stem, number = Path(path).stem, 1
    while not taken.isdisjoint(files := {name := f"{stem}_{number}" if number > 1 else stem, f"{name}_panoptic"}):
        number += 1
    taken |= files
    return name
