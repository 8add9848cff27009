"""X-SAM with Qwen3-4B-Instruct."""

from mmengine.config import read_base

with read_base():
    from .xsam_qwen3_1_7b import *

model["llm"].update(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    rope_theta=5000000.0,
    max_position_embeddings=262144,
)
model["projector"].update(out_channels=2560)
model["seg_projector"].update(out_channels=2560)
model["phrase_projector"].update(in_channels=2560)
processor.update(tokenizer="Qwen/Qwen3-4B-Instruct-2507", template="qwen3")
