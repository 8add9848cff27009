"""Make the tiny model's base weights again (data/shapes/base): about an hour on one core.

python tools/pretrain_shapes.py configs/shapes/stage3.py data/shapes/base
"""

import argparse
from pathlib import Path

from xsam.engine.pretrain import pretrain

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a config with the tiny model's encoders and language model")
    parser.add_argument("out", type=Path, help="folder for the tokenizer and model.safetensors")
    options = parser.parse_args()
    pretrain(options.config, options.out)
