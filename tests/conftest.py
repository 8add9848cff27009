"""Shared by all tests: xsam first (it makes torchvision importable), one thread per process."""

import torch

import xsam  # noqa: F401

torch.set_num_threads(2)
