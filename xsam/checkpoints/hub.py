"""What the Hugging Face hub wants beside a run folder: keys in `config.json`, a model card, code to open it with."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

STUB = "modeling_xsam.py"
KEYS = {
    "model_type": "xsam",
    "architectures": ["XSamModel"],
    "auto_map": {"AutoConfig": "modeling_xsam.XSamConfig", "AutoModel": "modeling_xsam.XSamModel"},
}

CARD = """---
library_name: xsam
pipeline_tag: image-segmentation
tags: [x-sam, segmentation, multimodal]
# license: yours to name; the language model and the encoders inside come with their own
---

# X-SAM

One multimodal model for any segmentation ([arXiv 2508.04655](https://arxiv.org/abs/2508.04655)), for the package
`xsam`.

| part | parameters | precision |
|---|---:|---|
{parts}

{inputs}

## Use

With the package `xsam` installed:

```python
from xsam import XSam

model = XSam.from_pretrained("THIS_FOLDER")
{example}
```

`transformers.AutoModel.from_pretrained("THIS_FOLDER", trust_remote_code=True)` gives the same network as a bare module;
the code in this folder only imports the package. `xsam convert THIS_FOLDER model.bin --to official` writes the original
program's file.
"""


def publish(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make a run folder one for the hub, in place."""
    (folder / "config.json").write_text(json.dumps({**config, **KEYS}, indent=1))
    shutil.copyfile(Path(__file__).with_name(STUB), folder / STUB)
    (folder / "README.md").write_text(card(config, tensors))


def card(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The model card: parts and sizes as they are in the tensors, sizes of the inputs as in the config."""
    sizes: Counter[str] = Counter()
    precisions: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        part = name.split(".")[0]
        sizes[part] += tensor.numel()
        precisions.setdefault(part, set()).add(str(tensor.dtype).removeprefix("torch."))
    rows = [f"| `{part}` | {size:,} | {', '.join(sorted(precisions[part]))} |" for part, size in sizes.items()]
    seg, vision = (f"{side} x {side}" for side in map(config.get("processor", {}).get, ("seg_size", "vision_size")))
    inputs = f"The segmentation encoder sees {seg} pixels"
    example = 'result = model.segment("photo.jpg", things=["car"], stuff=["road"])'
    if "llm" in sizes:
        inputs += f", the vision encoder {vision}"
        example = 'result = model.refer("photo.jpg", "the car on the left")'
    total = f"| all | {sum(sizes.values()):,} | |"
    return CARD.format(parts="\n".join([*rows, total]), inputs=inputs + ".", example=example)
