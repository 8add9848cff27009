"""X-SAM: one multimodal model for any segmentation (arXiv 2508.04655)."""

from typing import TYPE_CHECKING, Any

from . import compat as compat  # first: makes a torchvision without its compiled operators importable

if TYPE_CHECKING:
    from .api import XSam as XSam

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from xsam import XSam`, without loading the model's code when only a part of the package is wanted."""
    if name == "XSam":
        from .api import XSam

        return XSam
    raise AttributeError(f"module 'xsam' has no attribute {name!r}")
