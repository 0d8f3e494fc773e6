"""Measures case after case of the H100 benchmark, and keeps what each of them comes to.

Whatever a case raises becomes its record. After a failure the device is asked whether it still answers: a kernel that
writes where it must not takes down everything after it in the process, and figures from there on would be failures of
no case of their own. So the measuring ends there; a command that resumes takes failed cases last.

Next: `parts` (what a case is), `h100_results` (where records go).
"""

import gc
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.attention_timing import ACCELERATOR, CPU
from experiments.bench.h100_results import Results
from experiments.bench.parts import Case, Context, Part, Shared
from experiments.bench.results_file import FAILED, MEASURED, SKIPPED, Record
from nanoserve.report.progress import Progress
from nanoserve.specs.errors import ConfigError

Todo = Sequence[tuple[str, Case]]
"""Cases by part, in the order in which they are measured."""


def todo(chosen: Mapping[str, Sequence[Case]], results: Results) -> Todo:
    """What a file has not measured yet: what it knows nothing of, then what failed.

    Args:
      chosen: the cases of each part. results: the file.
    """
    known = {name: results.parts.get(name, {}) for name in chosen}
    cases = [(name, case) for name, of_part in chosen.items() for case in of_part if not results.has(name, case.name)]
    return sorted(cases, key=lambda each: each[1].name in known[each[0]])


def measure_all(
    waiting: Todo, loaded: Mapping[str, Part], results: Results, toy: bool, in_time: Callable[[], bool]
) -> tuple[int, str]:
    """Measures what waits, as long as it may.

    Args:
      waiting: what to measure. loaded: the parts. results: where it goes.
      toy: sizes are tiny. in_time: whether a case may still be started.

    Returns:
      How many cases were started, and why no more; nothing where all were.
    """
    import jax

    device, shared, part = jax.devices()[0], Shared(), ""
    effort = CPU if toy or device.platform == "cpu" else ACCELERATOR
    with tempfile.TemporaryDirectory() as scratch, Progress(len(waiting), "cases") as progress:
        options: dict[str, Any] = {"device": device, "effort": effort, "clock": time.perf_counter, "toy": toy}
        context = Context(found=results.parts, scratch=Path(scratch), shared=shared, **options)
        for started, (name, case) in enumerate(waiting):
            if not in_time():
                return started, "no time is left"
            if name != part:
                shared.release()
                part = name
            progress.update(started, case=f"{name}/{case.name}")
            results.add(name, case.name, record := measured(loaded[name], case, context))
            gc.collect()  # an executor and its calls hold one another, and a pool of KV that the next needs room of
            if record["status"] == FAILED and not answers(device):
                return started + 1, f"the device answers no more after {name}/{case.name}"
    return len(waiting), ""


def measured(part: Part, case: Case, context: Context) -> Record:
    """The record of a case, whatever becomes of it."""
    from experiments.bench.attention_peers import described

    begin_s = context.clock()
    try:
        found: Record = {"status": MEASURED} | part.measure(case, context)
    except ConfigError as error:
        found = {"status": SKIPPED, "reason": str(error)}
    except Exception as error:  # the other cases go on
        found = {"status": FAILED, "reason": described(error)}
    return case.sizes() | {"took_s": context.clock() - begin_s} | found


def answers(device: Any) -> bool:
    """Whether a device still computes."""
    import jax
    import jax.numpy as jnp

    try:
        return int(jnp.add(jax.device_put(1, device), 1)) == 2
    except Exception:  # whatever it says, it is no answer
        return False
