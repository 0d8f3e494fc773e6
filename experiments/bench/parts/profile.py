"""Where the time of whole steps goes, operation by operation, beside what the cost model prices each of them at.

The steps are some of the part `step`, run the same way: decode steps in a loop that is one plan, a prompt as a plan of
its own. They run once before the profiler starts, so nothing is compiled and nothing loaded while it records. Times are
those of a profiled step, which is slower than one that is not. Where the part `step` has run, its time of a step stands
beside them, and `unprofiled_waits_s`: what the device takes there beyond its kernels' own time here, which is how long
they wait for one another when nobody is looking.

Next: `nanoserve.executors.profiling` (the record), `nanoserve.roofline.profiled` (how time is divided).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.bench.parts import Context
from experiments.bench.parts.step_cases import EIGHT, SEVENTY, TOY, StepCase, decode, prefill
from experiments.bench.results_file import MEASURED, Record
from nanoserve.report.units import share, time

if TYPE_CHECKING:
    from experiments.bench.parts.step_ready import Prepared
    from nanoserve.executors.profile_reading import Recorded

NAME = "profile"
PLANS, LOOP_STEPS = 2, 5
_NAMED = 3  # operations in a line of the table


def cases(toy: bool) -> Sequence[StepCase]:
    """The steps: what the project is judged by."""
    if toy:
        return [decode(TOY, 2, 96), prefill(TOY, 64)]
    return [
        decode(EIGHT, 1, 1024),
        decode(EIGHT, 32, 4096),
        prefill(EIGHT, 2048),
        decode(SEVENTY, 1, 1024, "int4"),
    ]


def measure(case: StepCase, context: Context) -> Record:
    """Seconds of a step by operation, measured and priced.

    Raises:
      ConfigError: the step does not fit the device, or cannot be executed on it.
      RuntimeError: the profiler recorded nothing of the device.
    """
    from experiments.bench.parts.step_ready import prepare
    from nanoserve.executors.profile_reading import Priced, kinds_of
    from nanoserve.roofline.calibration import constants_for
    from nanoserve.roofline.profiled import Profile, Ran
    from nanoserve.specs.chips import ClusterSpec

    ready, steps = prepare(case, context), LOOP_STEPS if case.kind == "decode" else 1
    recorded, counts = _recorded(ready, steps, context), ready.plan(steps).counts
    ran = {each.plan: Ran(case.kind, counts, (each.end_ns - each.start_ns) * 1e-9) for each in recorded.windows}
    cluster = ClusterSpec(chip=context.chip, mesh={"tensor": 1})
    fitted = constants_for(context.chip, case.precision, "calibrated")
    priced = Priced(model=case.spec, cluster=cluster, precision=case.precision, calibration=fitted)
    kinds = kinds_of(recorded, ran, priced, context.device)
    profile = Profile(first=0, end=PLANS, device=context.device.device_kind, calibrated_by=fitted.name, kinds=kinds)
    return profile.as_dict() | {
        **_unprofiled(case, context, kinds[0].busy_s),
        "counts": dataclasses.asdict(counts),
        "attention": ready.attention,
    }


def columns(record: Record) -> Mapping[str, str]:
    """The cells of a line."""
    (kind,) = record["kinds"]
    of = {line["operation"]: line["measured_s"] for line in kind["lines"]}
    longest = (f"{line['operation']} {share(line['measured_s'] / kind['duration_s'])}" for line in kind["lines"])
    return {
        "a step": time(kind["duration_s"]),
        "unprofiled": time(record["unprofiled_s"]) if record["unprofiled_s"] else "",
        "its waits": f"{record['unprofiled_waits_s'] * 1e3:.3g} ms" if record["unprofiled_s"] else "",
        "priced": time(kind["calibrated_s"]),
        "busy": share(kind["busy_s"] / kind["duration_s"]),
        "gaps": share(of.get("gap", 0.0) / kind["duration_s"]),
        "host": share(of.get("host", 0.0) / kind["duration_s"]),
        "named": share(kind["attributed"]),
        "longest": ", ".join(list(longest)[:_NAMED]),
    }


def _recorded(ready: "Prepared", steps: int, context: Context) -> "Recorded":
    """The record of `PLANS` plans of so many steps."""
    from nanoserve.executors.profile_reading import NOTHING, read
    from nanoserve.executors.profiling import annotated, recording

    ready.result(steps)
    folder = context.scratch / ready.case.name
    with recording(folder):
        ready.result(steps)  # in no window: the first after its start also waits for the profiler
        for plan in range(PLANS):
            with annotated(plan):
                ready.result(steps)
    recorded = read(folder)
    if not recorded.events:
        raise RuntimeError(NOTHING)
    return recorded


def _unprofiled(case: StepCase, context: Context, busy_s: float) -> Record:
    """What a step of this case took in the part `step`, and its device beyond `busy_s`; None where it did not run."""
    found = context.found.get("step", {}).get(case.name, {})
    if found.get("status") != MEASURED:
        return {"unprofiled_s": None, "unprofiled_waits_s": None}
    return {"unprofiled_s": found["time"]["median_s"], "unprofiled_waits_s": found["device_step_s"] - busy_s}
