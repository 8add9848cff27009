"""The published sizes run on an ordinary machine: two of Phi-3's 32 layers, random weights, a photo, a CPU."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "../shared/refdata/photos/sam_truck.jpg"


@pytest.mark.slow
@pytest.mark.skipif(not PHOTO.is_file(), reason="no reference photo")
def test_prediction_at_full_size_stays_within_12_gb(world: Path, tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable, ROOT / "tools/predict.py", ROOT / "configs/_base_/models/xsam_phi3.py",
            "--checkpoint", "random", "--image", PHOTO, "--task", "panoptic", "--prompt", "truck, car; road, sky", "--score", "0",
            "--out", tmp_path, "model.llm.num_hidden_layers=2", f"processor.tokenizer={world}/base",
        ],
        check=True, env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}, timeout=1200,
    )  # fmt: skip
    with Image.open(tmp_path / "sam_truck.png") as drawn, Image.open(PHOTO) as photo:
        assert drawn.width >= photo.width
    # ru_maxrss: kilobytes of the largest child so far, on Linux; a panoptic prediction takes 6.2 GB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 12e6
