"""One replay of the logged requests under one config, reduced to what choices are made by.

A request is good when it is answered within the objective, failed when it is not answered at all (refused, timed out,
out of memory, aborted), and late otherwise. A trial is worth its good requests less its failed ones: a late answer
earns nothing, and a failure costs what a good answer earns. Invariant: trials of one trace have their requests in the
same order, so they can be compared request by request. Next: `search`.
"""

import dataclasses

import numpy as np

from nanoserve.experiment import Experiment
from nanoserve.replay import prepare
from nanoserve.report.metrics import good_requests, request_columns
from nanoserve.report.slo import Slo
from nanoserve.report.stats import quantiles
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.types import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What a replay did to each request and to the engines.

    Attributes:
      good, failed: bool [N], in the order of the trace.
      ttft_s, tpot_s, e2e_s: float [N], NaN where the request was not answered.
      output_tokens: of all answers. reasons: requests by finish reason.
      peak_waiting: longest queue of one engine, requests. kv_utilization: KV positions written over those held, mean
        over busy time.
    """

    good: np.ndarray
    failed: np.ndarray
    ttft_s: np.ndarray
    tpot_s: np.ndarray
    e2e_s: np.ndarray
    output_tokens: int
    reasons: dict[str, int]
    peak_waiting: int
    kv_utilization: float

    @property
    def worth(self) -> np.ndarray:
        """Of each request: 1 good, 0 late, -1 failed; float [N]."""
        return self.good.astype(np.float64) - self.failed

    def described(self) -> dict[str, float | int]:
        """The row of a table."""
        percentile = {name: float(quantiles(getattr(self, name), (0.95,))[0]) for name in ("ttft_s", "tpot_s")}
        return {
            "within_slo_share": float(self.good.mean()),
            "failed_share": float(self.failed.mean()),
            "out_of_memory": self.reasons.get("out_of_memory", 0),
            "timed_out": self.reasons.get("timed_out", 0),
            "refused": self.reasons.get("refused", 0),
            "p95_ttft_s": percentile["ttft_s"],
            "p95_tpot_s": percentile["tpot_s"],
            "peak_queue": self.peak_waiting,
            "kv_used_share": self.kv_utilization,
        }


def run_trial(experiment: Experiment, trace: Trace) -> Trial:
    """Replays a trace under a config, simulated.

    Raises:
      ConfigError: the experiment has no objective, or cannot be simulated. CapacityError: its weights do not fit.
    """
    replay = prepare(dataclasses.replace(experiment, executor="roofline"), trace)
    slo = objective(replay.facts.slo)
    replay.run()
    columns = request_columns(replay.records().requests.sort("request"))
    tables = [member.engine.log.step_columns(member.engine.scheduler.pool.num_pages) for member in replay.members]
    reasons, counts = np.unique(columns["finish_reason"].astype(str), return_counts=True)
    return Trial(
        good=good_requests(columns, slo),
        failed=~columns["completed"],
        ttft_s=columns["ttft_s"],
        tpot_s=columns["tpot_s"],
        e2e_s=columns["e2e_s"],
        output_tokens=int(columns["output_tokens"].sum()),
        reasons=dict(zip(reasons.tolist(), counts.tolist(), strict=True)),
        peak_waiting=max((int(table["waiting"].max(initial=0)) for table in tables), default=0),
        kv_utilization=_utilization(tables, experiment.engine.page_tokens),
    )


def objective(slo: Slo | None) -> Slo:
    """The objective itself.

    Raises:
      ConfigError: there is none.
    """
    if slo is None:
        raise ConfigError("a config is chosen by the answers within an objective, and there is none. Give --slo=NAME")
    return slo


def _utilization(tables: list[dict[str, np.ndarray]], page_tokens: int) -> float:
    held = sum(float((table["pages_used"] * table["duration_s"]).sum()) for table in tables) * page_tokens
    written = sum(float((table["kv_tokens_held"] * table["duration_s"]).sum()) for table in tables)
    return written / held if held else np.nan
