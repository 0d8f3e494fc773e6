"""Our decode steps beside PyTorch's: Hugging Face transformers with a static cache and torch.compile, as installed.

Both decode the same rows, with the same weights and the same keys and values (handed over on the device), in one
process, and take turns. Ours is the engine's plan of `LOOP_STEPS` steps, until every token is on the host; theirs are
as many steps of one token, until the device is done. Before they are timed, the logits of a first step must agree, and
the first greedy tokens of both are compared. Each holds weights and KV of its own: JAX gets half of the memory.

Next: `peer_torch` (their side), `step_ready` (ours).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.bench.attention_timing import Timeable, Timed, take_turns
from experiments.bench.parts import Case, Context, Shared
from experiments.bench.parts.step_cases import EIGHT, SHORT, TOY, StepCase, decode
from experiments.bench.results_file import Record
from nanoserve.report.units import short, significant, time
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    import jax
    import numpy as np

    from experiments.bench.parts.step_ready import Prepared
    from experiments.bench.peer_torch import Decoding

NAME = "peer"
REDUCE_OVERHEAD, MAX_AUTOTUNE = "reduce-overhead", "max-autotune"
COMPARED_STEPS, BATCHES = 8, 5
# Of |ours - theirs| / |theirs|, logits of a step. Random layers carry rounding on: of two right ways through 32 of them
# in bf16, 0.06 was seen; of a wrong order of matrices, 1.2.
TOLERANCE = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerCase(Case):
    """One decode step, by both.

    Attributes:
      model: of the registry, or `toy`. rows: sequences. context_tokens: KV positions that a row attends, on average.
      mode: of `torch.compile`.
    """

    model: str
    rows: int
    context_tokens: int
    mode: str

    @property
    def step(self) -> StepCase:
        """The step."""
        return decode(self.model, self.rows, self.context_tokens)


class Both:
    """The model on both sides, made when it is first asked for."""

    def __init__(self):
        """Holds nothing yet."""
        self.ours = Shared()
        self._theirs: Any = None

    def theirs(self, ready: "Prepared", platform: str) -> Any:
        """`LlamaForCausalLM` with the weights of ours."""
        from experiments.bench import peer_torch
        from nanoserve.model.export import tensors

        if self._theirs is None:
            self._theirs = peer_torch.llama(ready.spec, tensors(ready.spec, ready.model.params), platform)
        return self._theirs


def cases(toy: bool) -> Sequence[PeerCase]:
    """Steps, what the project is judged by first; compiling for `max-autotune` takes minutes."""
    if toy:
        return [_case(TOY, 2, 96)]
    usual = [_case(EIGHT, *sizes) for sizes in ((1, 1024), (32, 4096), (32, 1024), (1, 4096))]
    return [*usual, *(_case(EIGHT, rows, 1024, MAX_AUTOTUNE, extra=True) for rows in (1, 32))]


def _case(model: str, rows: int, context: int, mode: str = REDUCE_OVERHEAD, *, extra: bool = False) -> PeerCase:
    name = f"{SHORT[model]}_b{rows}_s{context}_{mode.replace('-', '_')}"
    return PeerCase(name=name, model=model, rows=rows, context_tokens=context, mode=mode, extra=extra)


def measure(case: PeerCase, context: Context) -> Record:
    """The time of a step by both, and how far they agree.

    Raises:
      ConfigError: PyTorch or transformers is not installed, or the step does not fit.
      ArithmeticError: the two compute different things. Exception: whatever else stands in the way.
    """
    from experiments.bench import peer_torch

    if reason := peer_torch.why_not(context.device.platform):
        raise ConfigError(reason)
    from experiments.bench.parts.step_ready import LOOP_STEPS, prepare
    from experiments.bench.peer_state import first_logits, keys_and_values

    both = context.shared.get(NAME, Both)
    ready = prepare(case.step, dataclasses.replace(context, shared=both.ours))
    plan = ready.plan(COMPARED_STEPS)
    past, tokens = plan.rows()[0].start, ready.executor.state.last_tokens[: case.rows]
    model = both.theirs(ready, context.device.platform)
    theirs = peer_torch.decoding(model, keys_and_values(ready), tokens, case.mode)
    agreed = agreement(first_logits(ready, plan), theirs.logits(past))
    agreed |= equality(_our_tokens(ready), theirs.start(past, COMPARED_STEPS).cpu().numpy())
    timed = _timed(ready, theirs, context)
    how = {
        "attention": ready.attention,
        "loop_steps": LOOP_STEPS,
        "peer_how": peer_torch.HOW,
        "peer_attention": model.config._attn_implementation,
        "peer_runs_without_graph": peer_torch.graphs_skipped(),
    }
    return record(case.rows, timed["ours"], timed["theirs"]) | agreed | how


def agreement(ours: "np.ndarray | jax.Array", theirs: "np.ndarray") -> Record:
    """How far logits [B, V] are from each other.

    Raises:
      ArithmeticError: further than rounding explains.
    """
    import numpy as np

    a, b = (np.asarray(logits, np.float64) for logits in (ours, theirs))
    error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    if not error <= TOLERANCE:  # NaN is no agreement either
        raise ArithmeticError(f"logits of the first step differ by {error:.2g}, more than {TOLERANCE:.2g}")
    return {"logits_error": error, "same_best": float(np.mean(a.argmax(-1) == b.argmax(-1)))}


def equality(ours: "np.ndarray", theirs: "np.ndarray") -> Record:
    """How many of the first greedy tokens [B, steps] are the same before a row's first difference."""
    import numpy as np

    equal = np.cumprod(ours == theirs, axis=1)
    return {
        "compared_tokens": int(equal.size),
        "equal_tokens": int(equal.sum()),
        "equal_rows": int(equal[:, -1].sum()),
    }


def record(rows: int, ours: Timed, theirs: Timed) -> Record:
    """Times of a step, tokens in a second, and how many times as fast ours is."""
    return {
        "time": ours.record(),
        "tokens_per_s": rows / ours.median_s,
        "peer_time": theirs.record(),
        "peer_tokens_per_s": rows / theirs.median_s,
        "times_as_fast": theirs.median_s / ours.median_s,
    }


def columns(record: Record) -> Mapping[str, str]:
    """The cells of a line."""
    return {
        "our step": time(record["time"]["median_s"]),
        "tokens/s": short(record["tokens_per_s"]),
        "their step": time(record["peer_time"]["median_s"]),
        "their tokens/s": short(record["peer_tokens_per_s"]),
        "times as fast": significant(record["times_as_fast"]),
        "logits' error": f"{record['logits_error']:.0e}",
        "equal tokens": f"{record['equal_tokens']} of {record['compared_tokens']}",
    }


def _our_tokens(ready: "Prepared") -> "np.ndarray":
    """The tokens [B, steps] of a plan, as they are booked."""
    import numpy as np

    ready.result(COMPARED_STEPS)
    outputs = ready.book.outputs
    return np.array([outputs[row][-COMPARED_STEPS:] for row in range(len(outputs))])


def _timed(ready: "Prepared", theirs: "Decoding", context: Context) -> dict[str, Timed]:
    """Both, in turns.

    Raises:
      Exception: what one of them raised.
    """
    from experiments.bench.parts.step_ready import LOOP_STEPS
    from experiments.bench.peer_torch import wait

    past = ready.plan(LOOP_STEPS).rows()[0].start

    def ours() -> None:
        ready.result(LOOP_STEPS)

    done = functools.partial(wait, context.device.platform)
    ways = {
        "ours": Timeable(ours, lambda: None, LOOP_STEPS),
        "theirs": Timeable(lambda: theirs.start(past, LOOP_STEPS), done, LOOP_STEPS),
    }
    timed = {}
    effort = dataclasses.replace(context.effort, batches=BATCHES, programs=1)
    for name, outcome in take_turns(ways, effort, context.clock).items():
        if isinstance(outcome, Exception):
            raise outcome
        timed[name] = outcome
    return timed
