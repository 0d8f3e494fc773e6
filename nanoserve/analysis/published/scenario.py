"""A benchmark that someone published, as something our engine can replay: `Scenario` in, `Outcome` out.

The scheduler, the pages, the load and the clock are those of every simulated run; nothing here knows what was measured.
Invariant: the same scenario gives the same outcome, bit for bit. Next: `stacks` (how a server is configured), `rows`
(a published row becomes a scenario), `comparison`.
"""

import dataclasses

import numpy as np

from nanoserve.analysis.published.clients import OneStepLate
from nanoserve.building import build_engine
from nanoserve.engine.clock import VirtualClock
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.engine import Load
from nanoserve.engine.memory import SIMULATED
from nanoserve.engine.types import to_ticks
from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.memory import memory_plan, num_pages
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import CapacityError
from nanoserve.specs.models import ModelSpec
from nanoserve.trace.load import ClosedLoop, OpenLoop
from nanoserve.trace.types import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """What ran, on what, and what it was asked.

    Attributes:
      model, cluster, precision: what is priced.
      engine: how the server was configured. reserve_outputs: a request is admitted only when there is room for all of
        its output too (TensorRT-LLM's guaranteed no eviction), rather than for its prompt.
      free_share: pages take this share of what is free once the weights are loaded (TensorRT-LLM), rather than all that
        `engine.hbm_utilization` leaves; None for the latter.
      trace: lengths, and arrivals of an open loop. clients: users of a closed loop, or None for an open one.
      served: requests come over a network while the engine runs, so that they join one step late (`clients`).
    """

    model: ModelSpec
    cluster: ClusterSpec
    precision: Precision
    engine: EngineConfig
    trace: Trace
    clients: int | None = None
    reserve_outputs: bool = False
    free_share: float | None = None
    served: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a replay says, one entry a request, in trace order; seconds.

    Attributes:
      ttft_s: from the arrival to the first token. tpot_s: (last - first) / (n - 1); NaN where n is 1.
      output_tokens: generated. duration_s: from the first arrival to the last token.
    """

    ttft_s: np.ndarray
    tpot_s: np.ndarray
    output_tokens: np.ndarray
    duration_s: float

    @property
    def output_tokens_per_s(self) -> float:
        """Over the whole run, ramps included, as benchmark clients count it."""
        return float(self.output_tokens.sum()) / self.duration_s


def replay(scenario: Scenario, calibration: Calibration) -> Outcome:
    """Runs a scenario through the engine with priced steps.

    Args:
      scenario: what to run. calibration: the constants, of the scenario's chip and stack.

    Raises:
      CapacityError: the weights leave no room, or a request that was served could not be.
    """
    pages = _pages(scenario)
    executor = RooflineExecutor(scenario.model, scenario.cluster, scenario.precision, calibration)
    config = _with_reserved_outputs(scenario, pages) if scenario.reserve_outputs else scenario.engine
    what = config, scenario.model, scenario.trace, pages
    engine = build_engine(*what, executor, VirtualClock(), _load(scenario), facts=SIMULATED)
    engine.run()
    return _outcome(engine.log.request_columns())


def _pages(scenario: Scenario) -> int:
    config = scenario.engine
    what = (scenario.model, scenario.cluster, scenario.precision)
    limits = {name: getattr(config, name) for name in ("page_tokens", "max_step_tokens", "max_seqs")}
    if config.num_pages is not None:
        return config.num_pages
    if scenario.free_share is None:
        return num_pages(*what, hbm_utilization=config.hbm_utilization, **limits)
    plan = memory_plan(*what, hbm_utilization=1.0, **limits)
    pages = int(scenario.free_share * plan.num_pages)
    return pages or num_pages(*what, hbm_utilization=scenario.free_share, **limits)  # which says what does not fit


def _with_reserved_outputs(scenario: Scenario, pages: int) -> EngineConfig:
    """The config with so few slots that whole requests of mean length always fit, which is exact for equal lengths."""
    config, trace = scenario.engine, scenario.trace
    whole_pages = np.ceil((trace.prompt_tokens + trace.output_tokens) / config.page_tokens)
    fits = int(pages / whole_pages.mean())
    return dataclasses.replace(config, max_seqs=max(1, min(config.max_seqs, fits)))


def _load(scenario: Scenario) -> Load:
    load: Load
    if scenario.clients is None:
        load = OpenLoop(scenario.trace, to_ticks)
    else:
        load = ClosedLoop(scenario.trace, to_ticks, clients=scenario.clients)
    return OneStepLate(load) if scenario.served else load


def _outcome(columns: dict[str, list]) -> Outcome:
    refused = [text for text in columns["detail"] if text]
    if refused:
        raise CapacityError(f"{len(refused)} of {len(columns['detail'])} requests could not be served: {refused[0]}")
    arrival, first, last = (np.array(columns[name]) for name in ("arrival_s", "first_token_s", "finish_s"))
    tokens = np.array(columns["output_tokens"])
    gaps = np.where(tokens > 1, tokens - 1, np.nan)
    return Outcome(
        ttft_s=first - arrival,
        tpot_s=(last - first) / gaps,
        output_tokens=tokens,
        duration_s=float(last.max() - arrival.min()),
    )
