"""X-SAM: one multimodal model for any segmentation (arXiv 2508.04655)."""

from . import compat as compat  # first: makes a torchvision without its compiled operators importable

__version__ = "0.1.0"
