"""X-SAM as published: SigLIP2-so400m-p14-384, SAM-L at 1024 px, Phi-3-mini, 200 queries; 4.6 billion parameters."""

from xsam.data.prompt import Processor
from xsam.models.connector import Connector
from xsam.models.criterion import Criterion
from xsam.models.encoders import SamEncoder, SiglipEncoder
from xsam.models.language import causal_lm
from xsam.models.mask_decoder import MaskDecoder
from xsam.models.mask_head import ConditionClassifier
from xsam.models.pixel_decoder import PixelDecoder
from xsam.models.projector import Projector
from xsam.models.xsam import XSamModel

model = dict(
    type=XSamModel,
    levels=[12, 18, 24],
    seg_level=23,
    seg_encoder=dict(type=SamEncoder, image_size=1024),
    vision_encoder=dict(type=SiglipEncoder, image_size=384),
    projector=dict(type=Projector, in_channels=1152, out_channels=3072),
    seg_projector=dict(type=Projector, in_channels=1024, out_channels=3072, unshuffle=True),
    llm=dict(
        type=causal_lm, model_type="phi3", vocab_size=32014, hidden_size=3072, intermediate_size=8192,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096,
        original_max_position_embeddings=4096, rms_norm_eps=1e-5, sliding_window=2047, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=32000, pad_token_id=0,
    ),
    phrase_projector=dict(type=Projector, in_channels=3072, out_channels=256),
    connector=dict(type=Connector, in_channels=1024),
    pixel_decoder=dict(type=PixelDecoder, in_channels=[512, 1024, 2048]),
    mask_decoder=dict(type=MaskDecoder),
    classifier=dict(type=ConditionClassifier),
)  # fmt: skip

processor = dict(
    type=Processor, seg_size=1024, vision_size=384, tokenizer="microsoft/Phi-3-mini-4k-instruct", template="phi3",
    max_length=2319,  # 4096 of the language model less 729 + 1024 image tokens and some reserve
)  # fmt: skip

criterion = dict(type=Criterion, num_points=12544)
