"""X-SAM with Qwen3-1.7B; the thinking block stays empty."""

from mmengine.config import read_base

with read_base():
    from .xsam_phi3 import *

model["llm"] = dict(  # replaced; `update` would keep the sliding window and the padding id of Phi-3
    type=causal_lm, model_type="qwen3", vocab_size=151672, hidden_size=2048, intermediate_size=6144,
    num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
    rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=True, bos_token_id=151643, eos_token_id=151645,
)  # fmt: skip
model["projector"].update(out_channels=2048)
model["seg_projector"].update(out_channels=2048)
model["phrase_projector"].update(in_channels=2048)
processor.update(tokenizer="Qwen/Qwen3-1.7B", template="qwen3_no_thinking", max_length=8192)
