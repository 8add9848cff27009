"""The smallest X-SAM with every part of the big one: 96 px, 3 M parameters, trains on a laptop CPU in minutes."""

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
    levels=[2, 3, 4],
    seg_level=3,
    seg_encoder=dict(
        type=SamEncoder, image_size=96, patch_size=8, channels=96, depth=4, num_heads=4, window_size=6,
        global_blocks=[1, 3], stem="residual",
    ),
    vision_encoder=dict(
        type=SiglipEncoder, image_size=96, patch_size=16, channels=96, depth=4, num_heads=4, mlp_channels=384,
        stem="residual",
    ),
    projector=dict(type=Projector, in_channels=96, out_channels=128),
    seg_projector=dict(type=Projector, in_channels=96, out_channels=128, unshuffle=True),
    llm=dict(
        type=causal_lm, model_type="phi3", vocab_size=640, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, sliding_window=1024, bos_token_id=1,
        eos_token_id=5, pad_token_id=0, initializer_range=0.08,
    ),
    phrase_projector=dict(type=Projector, in_channels=128, out_channels=64),
    connector=dict(type=Connector, in_channels=96, hidden_channels=64, out_channels=[64, 64, 128]),
    pixel_decoder=dict(type=PixelDecoder, in_channels=[64, 64, 128], channels=64, depth=1, feedforward=128),
    mask_decoder=dict(type=MaskDecoder, channels=64, num_queries=16, depth=3, feedforward=256),
    classifier=dict(type=ConditionClassifier, channels=64),
)  # fmt: skip

processor = dict(
    type=Processor, seg_size=96, vision_size=96, tokenizer="data/shapes/base", template="phi3", max_length=512
)

criterion = dict(type=Criterion, num_points=256)
