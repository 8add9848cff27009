"""Opens X-SAM with the installed package `xsam`; there is no model code here. Every folder for the hub has a copy."""

import os
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PretrainedConfig

from xsam import XSam


class XSamConfig(PretrainedConfig):
    model_type = "xsam"


class XSamModel:
    """What `transformers.AutoModel` finds; gives the loaded `xsam.models.xsam.XSamModel`, in the stored precision."""

    config_class = XSamConfig

    @classmethod
    def from_pretrained(cls, name: str, *_: Any, **options: Any) -> Any:
        if unknown := options.keys() & {"dtype", "torch_dtype", "device_map", "quantization_config"}:
            raise ValueError(f"X-SAM takes no {', '.join(sorted(unknown))} here; convert the loaded model")
        folder = name if os.path.isdir(name) else snapshot_download(name, revision=options.get("revision"))
        return XSam.from_pretrained(folder, device="cpu").model

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to do: transformers calls this to save the code again."""
