"""A finding of every kind that is drawn, with the series that its own room gives it."""

import functools

import numpy as np
import polars as pl

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.laboratory import examine
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.analysis.pages.plots import draw_all
from nanoserve.report.theme import Plot
from tests.analysis.logs.factories import joined_of

DAYS, SEED = 3, 0


@functools.cache
def small_service() -> Joined:
    """Three days of a service with failures, telemetry and sessions, made up."""
    rng, count = np.random.default_rng(SEED), 4000
    time_s = np.sort(rng.uniform(0, DAYS * 86400, count))
    prompt = np.maximum(1, rng.lognormal(5, 1.2, count)).astype(int)
    response = np.maximum(1, rng.lognormal(4, 0.8, count)).astype(int)
    status = rng.choice([200, 200, 200, 200, 200, 200, 200, 200, 503, 504], count)
    response[status != 200] = 0
    ttft_s = 0.1 + rng.exponential(0.1, count)
    starts_s = np.arange(0, DAYS * 86400, 60.0).repeat(2)
    held = rng.uniform(100, 900, len(starts_s))
    telemetry = pl.DataFrame(
        {
            "time_s": starts_s,
            "replica": np.tile([0, 1], len(starts_s) // 2),
            "compute": rng.uniform(0, 0.3, len(starts_s)),
            "bandwidth": rng.uniform(0, 0.8, len(starts_s)),
            "memory_bytes": held * 1e6,
            "memory_total_bytes": np.full(len(starts_s), 1e9),
            "queue": rng.uniform(0, 3, len(starts_s)),
            "running": rng.uniform(0, 12, len(starts_s)),
            "blocks_used": held,
            "blocks_total": np.full(len(starts_s), 1000.0),
            "largest_free_run_blocks": (1000 - held) * 0.8,
            "used_tokens": held * 9,
        }
    )
    failed = status == 503
    line = (
        "OutOfMemoryError: tried to allocate 132 blocks; 310 of 2048 free, largest free run 96; 14 sequences hold "
        "1402, 22 kept sessions hold 336; largest holder session 1833 with 160"
    )
    errors = pl.DataFrame(
        {
            "time_s": time_s[failed],
            "request_id": [f"r{row}" for row in np.flatnonzero(failed)],
            "error_type": ["OutOfMemory"] * int(failed.sum()),
            "traceback": [line] * int(failed.sum()),
        }
    )
    return joined_of(
        telemetry=telemetry,
        errors=errors,
        time_s=time_s,
        request_id=[f"r{row}" for row in range(count)],
        prompt_tokens=prompt,
        response_tokens=response,
        status=status,
        latency_s=ttft_s + 0.02 * response,
        ttft_s=np.where(status == 200, ttft_s, np.nan),
        replica=rng.integers(0, 2, count),
        allocated_blocks=(prompt + 1024) // 16 + 1,
        used_tokens=prompt + response,
        user_id=[f"u{user}" for user in rng.integers(0, 300, count)],
        session_id=[f"s{session}" for session in rng.integers(0, 1500, count)],
        turn=rng.integers(0, 4, count),
    )


@functools.cache
def answers() -> tuple[Finding, ...]:
    """What the laboratory says of that service, and a made-up recommendation for it."""
    return (*examine(small_service()).findings, *recommended())


@functools.cache
def plots() -> dict[str, Plot]:
    """All of that, drawn."""
    return draw_all(answers())


def recommended() -> tuple[Finding, ...]:
    """Findings of experiments, of the recommendation and of its proof, as `analysis.recommend` gives them."""
    outcome = {"within_slo_share": 0.9, "failed_share": 0.05, "p95_ttft_s": 0.4, "peak_queue": 12}
    hours = [{"hour": f"{day} {hour:02d}", "mean_rps": 0.1, "busy_rps": 0.2 + hour / 50, "needed": 1 + hour // 12}
             for day in ("weekday", "weekend") for hour in range(24)]  # fmt: skip
    blocks = {"start_s": np.arange(8) * 3600.0, "before": np.arange(8.0), "after": np.zeros(8), "all": np.full(8, 40.0)}
    configs = [
        {"config": name, "by_replay_rps": rate, "by_formula_rps": 2 * rate}
        for name, rate in (("baseline", 1.0), ("recommended", 1.5))
    ]
    trials = [{"interval (ms)": label} | outcome for label in ("0", "10", "50")]
    return (
        Finding(
            key="experiments.interval",
            title="The scheduling interval: 0 instead of 50 answers 9% sooner",
            rows=600,
            values={"choice": {"axis": "interval (ms)", "held": "50", "chosen": "0"}, "trials": trials},
            because=("0 instead of 50: ...",),
        ),
        Finding(
            key="recommend.replicas", title="The peak needs both", rows=4000, values={"replicas": 2, "hours": hours}
        ),
        Finding(
            key="proof.failures",
            title="0 held-out requests fail instead of 28",
            rows=320,
            values={"load": 1.0, "before": 28, "after": 0, "cut_share": 1.0},
            series=blocks,
        ),
        Finding(
            key="proof.goodput",
            title="Goodput rises",
            rows=320,
            values={"load": 1.5, "before_rps": 1.0, "after_rps": 1.1, "change_share": 0.1},
            series=blocks,
        ),
        Finding(
            key="proof.saturation",
            title="1.5 requests/s are served",
            rows=320,
            values={"base_rps": 0.8, "configs": configs},
        ),
    )
