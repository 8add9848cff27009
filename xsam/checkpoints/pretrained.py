"""Base weights of the parts: SAM, SigLIP and language models as the Hugging Face hub keeps them, and timm's ViTs."""

import re
from collections.abc import Collection
from pathlib import Path

from ..structures import UserError

# (a tensor that gives the model away, the prefix of what we want, its official prefix in X-SAM); first match decides.
BASES = (
    ("vision_encoder.pos_embed", "vision_encoder.", "segmentor.encoder."),  # SAM
    ("vision_model.embeddings.patch_embedding.weight", "vision_model.", "visual_encoder.vision_model."),  # SigLIP
    ("embeddings.patch_embedding.weight", "", "visual_encoder.vision_model."),  # SigLIP's vision tower alone
    ("model.embed_tokens.weight", "", "llm."),  # a causal language model
)
RANDOM = "random"  # a checkpoint's name when random weights are wanted
WEIGHTS = (".bin", ".pt", ".pth", ".safetensors")
TIMM = "timm."  # with an architecture, the prefix of timm's tensors until an encoder of the model takes them


def fetch(source: str | Path) -> Path:
    """A local file or folder as it is, or the folder of a hub name, downloaded where the cache does not have it.

    UserError: no such path, or a name that the hub does not know or cannot be asked for."""
    if (folder := Path(source)).exists():
        return folder
    name = str(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith(("runs/", ".")) or name.endswith(WEIGHTS):
        raise UserError(f"checkpoint {name}: no such file or folder; give a weight file, a run folder, or a hub name")
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.jinja", "model*.safetensors", "unused.safetensors"]
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except (OSError, ValueError) as error:  # all of the hub's errors are one of the two
        tried = f"no such file or folder, and not to be had from the hub ({str(error).strip().splitlines()[0]})"
        raise UserError(f"checkpoint {name}: {tried}; give a local folder") from None
    return folder


def base_names(names: Collection[str]) -> dict[str, str]:
    """Official names of the tensors of a base model that X-SAM has a use for; {} if it is none."""
    for sign, prefix, official in BASES:
        if sign in names:
            # Old Llama files hold the rotary frequencies, which every model computes itself.
            wanted = [n for n in names if n.startswith(prefix) and not n.endswith("rotary_emb.inv_freq")]
            return {n: official + n.removeprefix(prefix) for n in wanted}
    return {}
