"""What the Hugging Face hub wants beside a run folder: keys in `config.json`, a model card, code to open it with."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

HERE = Path(__file__).parent
KEYS = {
    "model_type": "xsam",
    "architectures": ["XSamModel"],
    "auto_map": {"AutoConfig": "modeling_xsam.XSamConfig", "AutoModel": "modeling_xsam.XSamModel"},
}


def publish(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make a run folder one for the hub, in place."""
    (folder / "config.json").write_text(json.dumps({**config, **KEYS}, indent=1))
    shutil.copyfile(HERE / "modeling_xsam.py", folder / "modeling_xsam.py")
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
    seg, vision = map(config.get("processor", {}).get, ("seg_size", "vision_size"))
    also = f", the vision encoder {vision} x {vision}" if "llm" in sizes else ""
    call = 'segment("photo.jpg", things=["car"], stuff=["road"])'
    if "llm" in sizes:
        call = 'refer("photo.jpg", "the car on the left")'
    template = (HERE / "model_card.md").read_text()
    return template.format(parts="\n".join(rows), total=sum(sizes.values()), seg=seg, also=also, call=call)
