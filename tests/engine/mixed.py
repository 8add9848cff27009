"""`xsam train` with what a long run meets, one each: `mixed.py NAN_STEP REFUSED_STEP train CONFIG ...`.

Rank 1 reads a NaN in the pictures of one step, and finds all its samples of another unusable at first.
"""

import sys
from dataclasses import replace

import torch

from xsam.cli import main
from xsam.data import mixture
from xsam.engine import distributed
from xsam.structures import BadSample

nan_step, refused_step = int(sys.argv[1]), int(sys.argv[2])
feed, draw = mixture.Loader.__iter__, mixture.Mixture.draw


def with_nan(self):
    for step, (source, batches) in zip(self.range, feed(self), strict=True):
        if step == nan_step and distributed.rank() == 1:
            pixels = batches[0].seg_pixel_values.float()
            pixels[0, 0, 0, 0] = torch.nan
            batches = [replace(batches[0], seg_pixel_values=pixels), *batches[1:]]
        yield source, batches


def with_refusals(self, name, index, place, encode):
    refused = place[1:2] == (refused_step,) and distributed.rank() == 1
    calls = iter(range(100))

    def once(sample, key, *, shorten):
        if refused and next(calls) == 0:
            raise BadSample("a test: refused")
        return encode(sample, key, shorten=shorten)

    return draw(self, name, index, place, once)


mixture.Loader.__iter__, mixture.Mixture.draw = with_nan, with_refusals
sys.exit(main(sys.argv[3:]))
