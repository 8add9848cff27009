"""Trainings on several processes, for all tests of the engine."""

import runpy
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def launch():
    """`launch.Launcher`, ready: its process imports everything once."""
    launcher = runpy.run_path(str(Path(__file__).with_name("launch.py")))["Launcher"]()
    yield launcher
    launcher.close()
