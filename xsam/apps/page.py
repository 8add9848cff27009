"""The frame of the HTML pages that the project writes: one file, no scripts."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 1100px; color: #222 }
article { border-top: 1px solid #bbb; padding: 1em 0 } h3, p { margin: .3em 0 }
figure { display: inline-block; margin: .3em 1em .3em 0; vertical-align: top } img { max-width: 520px }
figcaption, .small { color: #666; font-size: 13px; overflow-wrap: anywhere }
mark { color: #000; border-radius: 3px; padding: 0 2px } .said { background: #f0f3f6 }
.text { white-space: pre-wrap; overflow-wrap: anywhere } .bad { color: #a00 }
"""


def write(path: Path, title: str, intro: str, body: str) -> None:
    """Write a page; `intro` and `body` are HTML."""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}<h1>{escape(title)}</h1><p>{intro}</p>\n{body}</html>\n", encoding="utf-8")


def figure(picture: Image.Image, caption: str) -> str:
    """A picture inside the page, as JPEG, with its caption."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85, subsampling=0)  # thin lines keep their colours
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'
