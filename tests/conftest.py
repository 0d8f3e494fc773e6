"""Fixtures of every room. Tests run on the CPU unless JAX_PLATFORMS says otherwise."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before any test module imports JAX

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real traces, facts and references beside the repository; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared with real traces, facts and references, which is not here")
    return SHARED
