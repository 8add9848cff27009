"""Shared by all tests: xsam first (it makes torchvision importable), one thread, and a small embedded world."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

import xsam  # noqa: F401
from world.files import prepare
from world.shapes import train_tokenizer

os.environ["XSAM_CACHE"] = tempfile.mkdtemp(prefix="xsam-cache-")  # indices of the tests' own little files
torch.set_num_threads(1)  # two threads stall on a busy two-core machine


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded world with a few images, and its tokenizer in `base/`."""
    root = tmp_path_factory.mktemp("shapes")
    prepare(root, train=24, val=8)
    train_tokenizer(root / "base")
    return root
