"""Where an experiment's requests come from: a trace file, ServeGen's clients, or a generator; all from scalar fields.

`open_trace` makes the trace, `open_load` decides when its requests are sent. A `path` wins over the generator's fields.
Next: `readers`, `synth`, `load`.
"""

import dataclasses
import math
from collections.abc import Callable

from nanoserve.specs.errors import nearest
from nanoserve.trace import arrivals, servegen
from nanoserve.trace.chatbot import MEAN_RATE_RPS, chatbot_week
from nanoserve.trace.columns import UNITS_PER_S
from nanoserve.trace.lengths import Lengths, LogNormal, Quantiles
from nanoserve.trace.load import ClosedLoop, OpenLoop
from nanoserve.trace.presets import PRESETS, Preset
from nanoserve.trace.ranges import require, require_positive
from nanoserve.trace.readers import read_trace
from nanoserve.trace.slices import head, scaled, window, with_stated_limit
from nanoserve.trace.synth import Sessions, SynthSpec, synthesize
from nanoserve.trace.types import MAX_TOKENS, Trace
from nanoserve.trace.week import synthesize_week

LOOPS = ("open", "closed")
ARRIVALS = ("poisson", "gamma", "onoff", "diurnal")
WEEK = "chatbot_week"
_POSITIVE = ("time_scale", "requests", "burst_s", "period_s")
_POSITIVE_OR_NONE = (
    *("limit", "clients", "rate_rps", "cv"),
    *("prompt_median_tokens", "output_median_tokens", "stated_limit_tokens"),
)
_NOT_NEGATIVE = ("start_s", "think_time_s", "session_think_s", "prompt_sigma", "output_sigma", "seed")
_NOT_OF_A_WEEK = (
    *("arrivals", "cv", "burst_factor", "burst_share", "burst_s", "amplitude", "period_s", "correlation"),
    *("prompt_median_tokens", "prompt_sigma", "max_prompt_tokens"),
    *("output_median_tokens", "output_sigma", "max_output_tokens"),
    *("mean_turns", "session_think_s", "max_context_tokens"),
)
_NAMES = {"loop": LOOPS, "arrivals": ARRIVALS, "preset": (*PRESETS, WEEK), "time_unit": tuple(UNITS_PER_S)}
_RANGES = {
    "amplitude": (0, 1),
    "correlation": (-1, 1),
    "mean_turns": (1, 1_000_000),
    "max_prompt_tokens": (1, MAX_TOKENS),
    "max_output_tokens": (1, MAX_TOKENS),
    "max_context_tokens": (2, MAX_TOKENS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceSource:
    """Which requests, and when they are sent.

    Attributes:
      path: a trace file of any format `readers` knows; None generates. With `lengths_path`, ServeGen's rates.
      lengths_path: ServeGen's archive of lengths; the trace is then generated from its clients, at `rate_rps` if given.
      time_unit: of a file's bare timestamps (`s`, `ms`, `us`, `ns`); None means the format's own.
      start_s, end_s: only requests that arrive in this window, which becomes time 0; None means no end.
      limit: at most so many requests, counted after the window.
      time_scale: multiplies arrival times, after the window; 0.5 doubles the rate.
      loop: `open` sends at the trace's times; `closed` keeps `clients` requests under way.
      clients, think_time_s: of the closed loop.
      preset: the generator's starting point, a name in `presets.PRESETS`; or `chatbot_week` (`trace.chatbot`), of which
        only `requests`, `rate_rps` and `seed` can be chosen: its arrivals, lengths and sessions are its own.
      requests: how many to generate.
      rate_rps: mean arrival rate of requests; None keeps the preset's.
      arrivals: `poisson`, `gamma`, `onoff` or `diurnal`.
      cv: of `gamma`: standard deviation of the gaps over their mean; None keeps the preset's.
      burst_factor, burst_share, burst_s: of `onoff`: rate within a burst over the mean rate, share of the time spent in
        bursts, mean length of one.
      amplitude, period_s: of `diurnal`.
      prompt_median_tokens, prompt_sigma: log-normal prompts; a median of None keeps the preset's lengths.
      max_prompt_tokens: longer prompts are cut to this.
      output_median_tokens, output_sigma, max_output_tokens: likewise.
      correlation: of prompt and output, -1 to 1; None keeps the preset's.
      mean_turns: above 1 makes sessions. session_think_s: mean time between their turns. max_context_tokens: their end.
      stated_limit_tokens: the limit that clients state for an answer, longer answers excepted; the log's or the
        generator's lengths are then where answers end by themselves. None: they are the limits.
      seed: of everything generated.
    """

    path: str | None = None
    lengths_path: str | None = None
    time_unit: str | None = None
    start_s: float = 0.0
    end_s: float | None = None
    limit: int | None = None
    time_scale: float = 1.0
    loop: str = "open"
    clients: int | None = None
    think_time_s: float = 0.0
    preset: str = "azure_conversation"
    requests: int = 1000
    rate_rps: float | None = None
    arrivals: str = "gamma"
    cv: float | None = None
    burst_factor: float = 4.0
    burst_share: float = 0.2
    burst_s: float = 10.0
    amplitude: float = 0.5
    period_s: float = 86400.0
    prompt_median_tokens: float | None = None
    prompt_sigma: float = 1.0
    max_prompt_tokens: int = MAX_TOKENS
    output_median_tokens: float | None = None
    output_sigma: float = 1.0
    max_output_tokens: int = MAX_TOKENS
    correlation: float | None = None
    mean_turns: float = 1.0
    session_think_s: float = 30.0
    max_context_tokens: int = MAX_TOKENS
    stated_limit_tokens: int | None = None
    seed: int = 0

    def __post_init__(self):
        require_positive(self, *_POSITIVE, *(field for field in _POSITIVE_OR_NONE if getattr(self, field) is not None))
        for field in _NOT_NEGATIVE:
            require(self, field, 0 <= getattr(self, field) < math.inf, "at least 0 and finite")
        for field, (low, high) in _RANGES.items():
            value = getattr(self, field)
            require(self, field, value is None or low <= value <= high, f"from {low:,} to {high:,}")
        for field, valid in (
            ("loop", LOOPS),
            ("arrivals", ARRIVALS),
            ("preset", (*PRESETS, WEEK)),
            ("time_unit", UNITS_PER_S),
        ):
            value = getattr(self, field)
            hint = nearest(str(value), valid).split(" Valid")[0]
            optional = field == "time_unit" and value is None
            require(self, field, optional or value in valid, f"one of {', '.join(valid)}.{hint}")
        self._check_pairs()

    def _check_pairs(self):
        """Checks fields that only mean something beside another."""
        for field in dataclasses.fields(self) if self.preset == WEEK else ():
            good = field.name not in _NOT_OF_A_WEEK or getattr(self, field.name) == field.default
            require(self, field.name, good, f"left out: preset '{WEEK}' has its own")
        require(self, "end_s", self.end_s is None or self.end_s > self.start_s, f"above start_s = {self.start_s}")
        require(self, "clients", self.loop == "open" or self.clients is not None, "set when loop = 'closed'")
        require(
            self, "lengths_path", not self.lengths_path or self.path is not None, "None unless path names the rates"
        )
        require(self, "burst_share", 0 < self.burst_share < 1, "between 0 and 1")
        most = 1 / self.burst_share
        require(self, "burst_factor", 1 <= self.burst_factor <= most, f"from 1 to 1 / burst_share = {most:g}")


def open_trace(source: TraceSource, encode: Callable[[str], list[int]] | None = None) -> Trace:
    """Reads or generates the requests.

    Args:
      source: the fields.
      encode: text to token ids, for files that have prompts as text.

    Raises:
      TraceError: if the file is wrong. ConfigError: if the fields contradict the file.
    """
    if source.path and source.lengths_path:
        trace = _from_servegen(source.path, source.lengths_path, source)
    else:
        trace = (
            read_trace(source.path, time_unit=source.time_unit, encode=encode) if source.path else _generated(source)
        )
        if source.start_s or source.end_s is not None:
            trace = window(trace, source.start_s, math.inf if source.end_s is None else source.end_s)
    if source.limit is not None:
        trace = head(trace, source.limit)
    if source.stated_limit_tokens is not None:
        trace = with_stated_limit(trace, source.stated_limit_tokens)
    return scaled(trace, source.time_scale)


def open_load(source: TraceSource, trace: Trace, to_ticks: Callable[[float], int]) -> OpenLoop | ClosedLoop:
    """Decides when the requests of an opened trace are sent.

    Args:
      source: the fields. trace: what `open_trace` returned. to_ticks: seconds to the engine's ticks.
    """
    if source.clients is not None and source.loop == "closed":
        return ClosedLoop(trace, to_ticks, clients=source.clients, think_time_s=source.think_time_s)
    return OpenLoop(trace, to_ticks)


def _from_servegen(rates_path: str, lengths_path: str, source: TraceSource) -> Trace:
    end_s = servegen.DAY_S if source.end_s is None else source.end_s
    return servegen.generate(
        rates_path, lengths_path, start_s=source.start_s, end_s=end_s, rate_rps=source.rate_rps, seed=source.seed
    )


def _generated(source: TraceSource) -> Trace:
    if source.preset == WEEK:
        rate_rps = MEAN_RATE_RPS if source.rate_rps is None else source.rate_rps
        return synthesize_week(chatbot_week(source.requests, rate_rps), source.seed)
    base = PRESETS[source.preset]
    spec = SynthSpec(
        name=source.preset,
        requests=source.requests,
        arrivals=_arrivals(source, base),
        prompt=_lengths(base.prompt, source.prompt_median_tokens, source.prompt_sigma, source.max_prompt_tokens),
        output=_lengths(base.output, source.output_median_tokens, source.output_sigma, source.max_output_tokens),
        correlation=base.correlation if source.correlation is None else source.correlation,
        sessions=_sessions(source),
    )
    return synthesize(spec, source.seed)


def _lengths(base: Quantiles, median_tokens: float | None, sigma: float, max_tokens: int) -> Lengths:
    if median_tokens is not None:
        return LogNormal(median_tokens=median_tokens, sigma=sigma, max_tokens=max_tokens)
    return dataclasses.replace(base, tokens=tuple(min(tokens, max_tokens) for tokens in base.tokens))


def _sessions(source: TraceSource) -> Sessions | None:
    if source.mean_turns == 1:
        return None
    return Sessions(
        mean_turns=source.mean_turns,
        think_time_s=source.session_think_s,
        max_context_tokens=source.max_context_tokens,
    )


def _arrivals(source: TraceSource, base: Preset) -> arrivals.Arrivals:
    """The process of first turns: a session of m turns stands for m requests of the rate."""
    request_rps = base.rate_rps if source.rate_rps is None else source.rate_rps
    rate_rps = request_rps / source.mean_turns
    match source.arrivals:
        case "poisson":
            return arrivals.Poisson(rate_rps=rate_rps)
        case "gamma":
            return arrivals.Gamma(rate_rps=rate_rps, cv=base.cv if source.cv is None else source.cv)
        case "diurnal":
            return arrivals.Diurnal(rate_rps=rate_rps, amplitude=source.amplitude, period_s=source.period_s)
    share = source.burst_share
    return arrivals.OnOff(
        on_rate_rps=rate_rps * source.burst_factor,
        off_rate_rps=rate_rps * max(0.0, 1 - source.burst_factor * share) / (1 - share),
        mean_on_s=source.burst_s,
        mean_off_s=source.burst_s * (1 - share) / share,
    )
