"""`xsam doctor`: findings about the machine and a config, each with its remedy, and two steps tried."""

from types import SimpleNamespace

import pytest

from xsam import config as configs
from xsam.cli import main
from xsam.engine import doctor
from xsam.engine.estimate import estimate
from xsam.structures import UserError


def test_this_machine(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "note"}
    assert all("; " in line for line in lines if line.startswith("note"))
    for what in ("transformers 5", "deepspeed 0", "flash_attn", "METEOR", "cores"):
        assert any(what in line for line in lines), what


def test_packages_that_are_absent_or_not_tested(monkeypatch, capsys):
    installed = [SimpleNamespace(name="NumPy", version="2.1.0"), SimpleNamespace(name="peft", version="0.1")]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: installed)
    found = {finding.text.split()[0]: finding for finding in doctor.environment()}
    assert found["numpy"].good
    assert str(found["peft"]).startswith("note     peft 0.1, tested are")
    assert str(found["timm"]).startswith("problem  timm is missing")
    assert found["timm"].remedy == "pip install -c constraints.txt 'timm<2,>=1.0.20'"


@pytest.mark.parametrize(
    "driver, cuda, said",
    [(None, None, "note     no GPU"), ("x", None, "problem  torch 2"), ("x", "12.8", "update the driver")],
)
def test_a_gpu_that_torch_does_not_see(driver, cuda, said, monkeypatch):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: driver if name == "nvidia-smi" else None)
    assert any(said in str(finding) for finding in doctor.environment())


def test_what_a_config_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    monkeypatch.setattr(doctor, "try_to_load_from_cache", lambda *_: None)
    config = configs.load("configs/xsam_phi3_stage3.py")
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "coco" / "annotations" / "panoptic_train2017.json"
    there.parent.mkdir(parents=True)
    there.touch()
    said = [str(finding) for finding in doctor.files(config, SimpleNamespace(state=64e9))]
    assert not any("panoptic_train2017.json" in line for line in said)
    (ade,) = (line for line in said if "ade20k_panoptic_val.json" in line)
    assert ade.startswith("problem")
    assert "benchmarks.ade20k_panoptic" in ade
    assert "sceneparsing.csail.mit.edu" in ade
    assert "`xsam data prepare ade20k`" in ade
    (refs,) = (line for line in said if "refs(unc).p is missing" in line and "refcoco/" in line)
    assert "mixture.sources.refcoco, benchmarks.refcoco_val" in refs
    assert "problem  weights of runs/xsam_phi3_stage1; missing: xsam train configs/xsam_phi3_stage1.py" in said
    assert any(line.startswith("note") and "hf download microsoft/Phi-3" in line for line in said)
    assert "3 training states of 64.0 GB" in said[-1]


def test_two_steps_by_the_trainer(monkeypatch):
    options = ["stage.batch_size=4", "stage.micro_batch=2", "criterion.num_points=256", "stage.frozen=[]"]
    config = configs.load("configs/shapes/stage1.py", options)
    found = estimate(config, 1)
    finding = doctor.dry_pass(config, found)
    assert finding.good
    assert finding.text.startswith("two steps of 2 x 2 samples in")
    memory = SimpleNamespace(available=1e6)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory)
    finding = doctor.dry_pass(config, found)
    assert finding.otherwise == "note"
    assert "0.0 are free" in finding.remedy
    memory.available = 1e12
    monkeypatch.setattr(doctor, "CORE", 1.0)
    finding = doctor.dry_pass(config, found)
    assert "not tried" in finding.text
    assert "about" in finding.remedy


def test_a_config_without_a_stage(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match="describes no training"):
        doctor.examine(str(tmp_path), [], 0, 0, 312)


def test_the_exit_code_says_whether_there_is_a_problem(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "dry_pass", lambda *_: doctor.Finding(True, ""))
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    assert main(["doctor", "configs/shapes/stage1.py", "stage.batch_size=1"]) == 1
    said = capsys.readouterr().out
    assert "ok       one of 1 GPUs with 80 GB has to hold 1.5 GB" in said
    assert f"problem  {tmp_path}/shapes/train is missing, for mixture.sources.panoptic" in said
    assert "`xsam data prepare shapes`" in said
