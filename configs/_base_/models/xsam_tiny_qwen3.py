"""The tiny model with a Qwen3: tied embeddings, grouped queries, another chat template and no bos token."""

from mmengine.config import read_base

with read_base():
    from .xsam_tiny import *

model["llm"] = dict(
    type=causal_lm, model_type="qwen3", vocab_size=640, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=7, pad_token_id=0,
)  # fmt: skip
processor.update(template="qwen3_no_thinking")
