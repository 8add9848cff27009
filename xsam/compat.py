"""The only home of work-arounds for broken installs. On a healthy install importing this changes nothing.

torchvision wheels on PyPI are CUDA builds; beside a CPU build of torch their compiled operators do not load and
`import torchvision` raises `RuntimeError: operator torchvision::nms does not exist`, in timm, peft and parts of
transformers, too. Declaring the two schemas that torchvision decorates while it is imported is enough for everything
X-SAM uses; the operators themselves (nms, roi_pool) stay unavailable and X-SAM does not call them."""

import os
import sys

# GNU OpenMP spins at every barrier. When another program holds one of two cores, a step of the tiny model then takes
# up to ten times as long; with little spinning it does not. Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

try:
    import torchvision
except ModuleNotFoundError:
    pass  # whoever needs it will say so
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    _KEPT = torch.library.Library("torchvision", "FRAGMENT")  # drops its schemas when it is garbage collected
    for _name in ("nms", "qnms"):
        _KEPT.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for _name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[_name]
    import torchvision  # noqa: F401


def prepare_deepspeed() -> None:
    """Keep DeepSpeed from compiling C++ on its first start; call before `deepspeed.init_distributed`. On a CPU it would
    build `deepspeed_shm_comm` (two minutes that look like a hang, and a stale lock when killed), which only the
    shared-memory all-reduce of its inference engine needs."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
