"""Names of the released X-SAM checkpoints <-> ours: one table, read in both directions."""

import re
from collections.abc import Collection

# (official, ours); the first row that a name begins with decides. `{}` stands for a number.
TABLE = (
    ("visual_encoder.vision_model.", "vision_encoder."),
    ("visual_projector.model.", "projector.layers."),
    ("seg_projector.model.", "seg_projector.layers."),
    ("llm_projector.model.", "phrase_projector.layers."),
    ("llm.", "llm."),
    ("segmentor.encoder.", "seg_encoder."),
    ("seg_connector.model.{}.model.", "connector.branches.{}."),
    ("segmentor.pixel_decoder.encoder.layers.", "pixel_decoder.layers."),
    ("segmentor.pixel_decoder.adapter_1.", "pixel_decoder.lateral."),
    ("segmentor.pixel_decoder.layer_1.", "pixel_decoder.output."),
    ("segmentor.pixel_decoder.", "pixel_decoder."),
    ("segmentor.decoder.queries_features.weight", "mask_decoder.query_features"),
    ("segmentor.decoder.queries_embedder.weight", "mask_decoder.query_positions"),
    ("segmentor.decoder.level_embed.weight", "mask_decoder.level_embed"),
    ("segmentor.decoder.decoder.layers.", "mask_decoder.layers."),
    ("segmentor.decoder.decoder.layernorm.", "mask_decoder.layer_norm."),
    ("segmentor.decoder.decoder.mask_predictor.mask_embedder.0.0.", "mask_decoder.mask_embedder.0."),
    ("segmentor.decoder.decoder.mask_predictor.mask_embedder.1.0.", "mask_decoder.mask_embedder.2."),
    ("segmentor.decoder.decoder.mask_predictor.mask_embedder.2.0.", "mask_decoder.mask_embedder.4."),
    ("segmentor.logit_scale", "classifier.logit_scale"),
    ("bg_embeds.weight", "classifier.background"),
    ("segmentor.class_predictor.", "classifier.predictor."),
)

# What the official main branch calls some of them; read, never written.
ALIASES = (
    ("vision_encoder.vision_model.", "visual_encoder.vision_model."),
    ("segmentor.class_predictor.logit_scale", "segmentor.logit_scale"),
    ("segmentor.class_predictor.predictor.", "segmentor.class_predictor."),
)

# Stored officially, but nothing reads their output: SAM's neck, SigLIP's end, a buffer of SAM's prompts.
DEAD = (
    "segmentor.encoder.neck.", "segmentor.shared_image_embedding.",
    "visual_encoder.vision_model.post_layernorm.", "visual_encoder.vision_model.head.",
)  # fmt: skip

PARTS = tuple(dict.fromkeys(ours.split(".")[0] for _, ours in TABLE))  # modules of `XSamModel` that have weights


def part_of(name: str) -> str:
    return name.split(".")[0]


def to_ours(name: str) -> str | None:
    """Our name of an official tensor, None if no module of ours has it (but see `translate`), another name as it is."""
    return None if (name := canonical(name)).startswith(DEAD) else _rename(name, TABLE)


def canonical(name: str) -> str:
    """An official name of either branch as the archive branch has it."""
    return _rename(name, ALIASES)


def to_official(name: str) -> str:
    """The official name (archive branch) of one of our tensors; another name comes back as it is."""
    return _rename(name, tuple((ours, official) for official, ours in TABLE))


def translate(names: Collection[str]) -> dict[str, str | None]:
    """`to_ours` of all names; None for SigLIP's last layer too, dead in a full tower, which its final norm tells."""
    ours, layer_of = {name: to_ours(name) for name in names}, r"vision_encoder\.encoder\.layers\.(\d+)\."
    if any("vision_model.post_layernorm." in name for name in names):
        layers = {name: int(m[1]) for name, new in ours.items() if new and (m := re.match(layer_of, new))}
        ours |= {name: None for name, layer in layers.items() if layer == max(layers.values())}
    return ours


def is_official(names: Collection[str]) -> bool:
    """Whether a checkpoint carries official names: some tensor has another name with us."""
    return any(to_ours(name) != name for name in names)


def _rename(name: str, rows: tuple[tuple[str, str], ...]) -> str:
    for before, after in rows:
        if match := re.match(re.escape(before).replace(r"\{\}", r"(\d+)"), name):
            return after.format(*match.groups()) + name[match.end() :]
    return name
