"""What the project wants of an H100, and which figures of the benchmark say whether it is so.

A goal is met where every one of its cases was measured and reaches it, and open where none was measured. A case that
failed speaks against it; one that was skipped does not fit the chip, and says nothing.

Next: `h100_page`, which shows them.
"""

import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping

from experiments.bench.attention_results import times_as_fast
from experiments.bench.parts import replay_figures
from experiments.bench.parts.step_cases import EIGHT, SEVENTY
from experiments.bench.results_file import FAILED, MEASURED, Record
from nanoserve.report.units import share, significant

Found = Mapping[str, Mapping[str, Record]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """Something that figures decide.

    Attributes:
      what: in words. part: whose cases decide it.
      of: whether a case is one of them. figure: of a measured one; None where it has no say.
      wanted: the worst that is good enough. least: larger is better, else smaller is. written: how figures are shown.
    """

    what: str
    part: str
    of: Callable[[Record], bool]
    figure: Callable[[Record], float | None]
    wanted: float
    least: bool = True
    written: Callable[[float], str] = share

    @property
    def wanted_text(self) -> str:
        """What is wanted, with its direction."""
        return f"{'at least' if self.least else 'at most'} {self.written(self.wanted)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the figures say of a goal.

    Attributes:
      goal: which. cases: that were measured. failed: those that were not, for an error.
      worst: of the figures, and worst_case whose it is; None where none was measured.
    """

    goal: Goal
    cases: int
    failed: tuple[str, ...]
    worst: float | None
    worst_case: str

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None where nothing was measured."""
        if self.failed:
            return False
        if self.worst is None:
            return None
        return self.worst >= self.goal.wanted if self.goal.least else self.worst <= self.goal.wanted


def judged(found: Found) -> Iterator[Verdict]:
    """What a file's figures say of every goal.

    Args:
      found: records by part and case.
    """
    for goal in GOALS:
        decide = {name: record for name, record in found.get(goal.part, {}).items() if goal.of(record)}
        measured = {name: goal.figure(record) for name, record in decide.items() if record["status"] == MEASURED}
        figures = {name: figure for name, figure in measured.items() if figure is not None}
        worst = (min if goal.least else max)(figures, key=lambda name: figures[name], default="")
        yield Verdict(
            goal=goal,
            cases=len(figures),
            failed=tuple(name for name, record in decide.items() if record["status"] == FAILED),
            worst=figures[worst] if worst else None,
            worst_case=worst,
        )


def goal_lines(found: Found) -> Iterator[str]:
    """The goals that figures speak about, as lines for people."""
    for verdict in judged(found):
        if verdict.met is not None:
            worst = "" if verdict.worst is None else f"{verdict.goal.written(verdict.worst)} at {verdict.worst_case}"
            failed = ", ".join(f"{name} failed" for name in verdict.failed)
            said = "; ".join(filter(None, (worst, failed)))
            reached = "met" if verdict.met else "SHORT"
            yield f"{reached}: {verdict.goal.what}: {said} (wanted: {verdict.goal.wanted_text})"


def _attends(record: Record) -> bool:
    sizes = record["rows"] >= 32 and record["longest_tokens"] >= 2048
    return record["kind"] == "decode" and record["kv"] == "bf16" and sizes and record["model"] == EIGHT


def _slowest_peer(record: Record) -> float | None:
    return min((ratio for _, ratio in times_as_fast(record)), default=None)


def _decodes(model: str, weights: str, rows: Container[int], context: int) -> Callable[[Record], bool]:
    def of(record: Record) -> bool:
        sizes = record["rows"] in rows and record["context_tokens"] >= context
        stored = record["weights"] == weights and record["kv"] == "bf16"
        return record["model"] == model and record["kind"] == "decode" and stored and sizes

    return of


def _prefills(record: Record) -> bool:
    return record["model"] == EIGHT and record["kind"] == "prefill" and record["new_tokens"] == 2048


def _error(name: str) -> Callable[[Record], float | None]:
    def figure(record: Record) -> float | None:
        error = record["simulated"][replay_figures.BENCH]["errors"][name]
        return None if error is None else abs(error)

    return figure


def _drift(record: Record) -> float | None:
    """How far a likelihood is off float32's, which has none itself."""
    return abs(record["relative"]) if "relative" in record else None


def _named(name: str) -> Callable[[Record], float]:
    return lambda record: record[name]


GOALS: tuple[Goal, ...] = (
    Goal(
        what="Decode attention, 32 rows and more of 2,048 positions and more, of the measured copy",
        part="attention", of=_attends, figure=_named("copy_fraction"), wanted=0.85,
    ),
    Goal(
        what="Times as fast as the fastest other attention",
        part="attention", of=_attends, figure=_slowest_peer, wanted=1.0, written=significant,
    ),
    Goal(
        what="MBU of an 8B bf16 decode step, 1 row",
        part="step", of=_decodes(EIGHT, "bf16", (1,), 1), figure=_named("mbu"), wanted=0.7,
    ),
    Goal(
        what="MBU of an 8B bf16 decode step, 32 to 128 rows of 4,096 positions",
        part="step", of=_decodes(EIGHT, "bf16", range(32, 129), 4096), figure=_named("mbu"), wanted=0.75,
    ),
    Goal(
        what="MBU of a 70B int4 decode step, 1 row",
        part="step", of=_decodes(SEVENTY, "int4", (1,), 1), figure=_named("mbu"), wanted=0.6,
    ),
    Goal(
        what="MFU of an 8B bf16 prompt of 2,048 tokens",
        part="step", of=_prefills, figure=_named("mfu"), wanted=0.6,
    ),
    Goal(
        what="Host gap of decode steps in a loop",
        part="step", of=lambda record: record["kind"] == "decode", figure=_named("host_gap_share"), wanted=0.03,
        least=False,
    ),
    Goal(
        what="Tokens/s of 8B decode, times PyTorch's, 1 and 32 rows",
        part="peer", of=lambda record: record["rows"] in (1, 32), figure=_named("times_as_fast"), wanted=1.3,
        written=significant,
    ),
    *(
        Goal(
            what=f"Simulation against the executed replay, {words}",
            part="replay", of=lambda record: True, figure=_error(name), wanted=replay_figures.GOALS[name], least=False,
        )
        for name, words in replay_figures.FIGURES.items()
    ),
    Goal(
        what="Likelihood in bf16 against float32, SmolLM2",
        part="tokens", of=lambda record: record["kind"] != "greedy" and record["precision"] == "bf16",
        figure=_drift, wanted=0.01, least=False,
    ),
    Goal(
        what="Greedy tokens in float32 that are the reference's, SmolLM2",
        part="tokens", of=lambda record: record["kind"] == "greedy" and record["precision"] == "f32",
        figure=lambda record: record["equal_tokens"] / record["tokens"], wanted=1.0,
    ),
)  # fmt: skip
