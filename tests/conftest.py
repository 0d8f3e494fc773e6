"""Fixtures of every room. Tests run on the CPU unless JAX_PLATFORMS says otherwise."""

import os
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"

# Before any test module imports JAX. A program that an earlier run compiled is not compiled again.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# The interpreter of GPU kernels runs each warpgroup as a program that blocks where the warpgroup waits. Scheduled for
# concurrency, such programs fill XLA's pool of one thread a core, and then wait for each other for ever.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_concurrency_optimized_scheduler=false"

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# No test asserts a time, not even that an example took less than a fifth of a second on a busy machine.
hypothesis.settings.register_profile(
    "nanoserve", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("nanoserve")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real traces, facts and references beside the repository; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared with real traces, facts and references, which is not here")
    return SHARED


@pytest.fixture(scope="module")
def quick_compilation():
    """Most of an interpreted kernel's time is XLA compiling it, to be run once."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
