"""How the attention benchmark takes time, and the two ceilings that it is held against.

A batch starts a few programs, each of many calls that depend on one another, without waiting in between, and waits once
at its end: what is timed is a full queue, and no call can be dropped, merged or started early. The figure of a call is
the median of the batches; their least and most are kept beside it. Contenders take turns batch by batch, so that a
clock that drifts drifts for all of them.

Next: `attention_calls`, whose calls are timed.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure, and over how much memory.

    Attributes:
      batches: timed batches; at least 5.
      programs: programs started in a batch before it waits.
      least_calls, most_calls: calls in a program.
      batch_bytes, batch_flops: what a program's calls need together, between those bounds.
      pool_bytes: KV that the calls of a program take turns over, larger than any cache on the chip.
      most_sets: into how many sets it is cut at most; a batch of 1 over 1,024 positions with one head has 0.5 MB.
      copy_bytes, matmul_size: the ceilings' arrays.
    """

    batches: int
    programs: int
    least_calls: int
    most_calls: int
    batch_bytes: float
    batch_flops: float
    pool_bytes: int
    most_sets: int
    copy_bytes: int
    matmul_size: int

    def calls(self, useful_bytes: int, flops: int) -> int:
        """Calls in a program."""
        wanted = min(self.batch_bytes / useful_bytes, self.batch_flops / flops)
        return round(min(max(wanted, self.least_calls), self.most_calls))

    def sets(self, useful_bytes: int) -> int:
        """Sets of KV to take turns over."""
        return min(-(-self.pool_bytes // useful_bytes), self.most_sets)


# A program of 5 ms or more at the limits of an H100, so that starting it (some 50 us) is lost in it.
ACCELERATOR = Effort(
    batches=7,
    programs=3,
    least_calls=8,
    most_calls=256,
    batch_bytes=16e9,
    batch_flops=4e12,
    pool_bytes=2**29,
    most_sets=256,
    copy_bytes=2**30,
    matmul_size=8192,
)
# A CPU's times mean nothing here: the same code, as little of it as possible.
CPU = Effort(
    batches=5,
    programs=1,
    least_calls=2,
    most_calls=2,
    batch_bytes=1,
    batch_flops=1,
    pool_bytes=2**29,
    most_sets=2,
    copy_bytes=2**27,
    matmul_size=512,
)


INTERPRETER = dataclasses.replace(CPU, least_calls=1, most_calls=1)  # where one call takes half a second


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds of one call, batch by batch."""

    batches_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The figure."""
        return statistics.median(self.batches_s)

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "median_s": self.median_s,
            "least_s": min(self.batches_s),
            "most_s": max(self.batches_s),
            "batches_s": list(self.batches_s),
        }


@dataclasses.dataclass(frozen=True)
class Timeable:
    """Something to time.

    Attributes:
      start: starts one program, which need not have finished when it returns. wait: until all that was started is done.
      calls: calls in a program.
    """

    start: Callable[[], None]
    wait: Callable[[], None]
    calls: int = 1


@dataclasses.dataclass(frozen=True)
class Contender:
    """Attention that is ready to run.

    Attributes:
      timeable: its program. first: the result of the program's first call, [T, H, h]; runs it.
      how: in what its calls are bundled.
    """

    timeable: Timeable
    first: Callable[[], "np.ndarray"]
    how: str


def take_turns(
    contenders: Mapping[str, Timeable], effort: Effort, clock: Clock = time.perf_counter
) -> dict[str, Timed | Exception]:
    """Times every contender, a batch each in turn, after one batch of each to warm up.

    Returns:
      Times by name, or the exception of a contender that raised one, which is then left out of later turns.
    """
    batches: dict[str, list[float]] = {name: [] for name in contenders}
    raised: dict[str, Exception] = {}
    for _ in range(1 + effort.batches):
        for name, contender in contenders.items():
            if name in raised:
                continue
            try:
                batches[name].append(_batch_s(contender, effort.programs, clock))
            except Exception as error:  # one contender's failure is a result; the others go on
                raised[name] = error
    return {name: raised.get(name) or Timed(tuple(times[1:])) for name, times in batches.items()}


def _batch_s(contender: Timeable, programs: int, clock: Clock) -> float:
    contender.wait()
    start_s = clock()
    for _ in range(programs):
        contender.start()
    contender.wait()
    return (clock() - start_s) / (programs * contender.calls)


def ceilings(effort: Effort, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """What the device does at best, by several ways each: a copy of its memory, and a bf16 matrix product.

    Returns:
      As JSON holds it: `copy_bytes_per_s` (bytes read plus bytes written) and `matmul_flops_per_s` of the better way's
      median, and every way's times.
    """
    copies = take_turns(copy_ways(effort.copy_bytes), effort, clock)
    matmuls = take_turns({"xla": matmul(effort.matmul_size)}, effort, clock)
    return {
        "copy_bytes_per_s": 2 * effort.copy_bytes / fastest_s(copies),
        "copy_counts": f"bytes read plus bytes written, arrays of {effort.copy_bytes} bytes",
        "copy_ways": {name: timed.record() for name, timed in copies.items() if isinstance(timed, Timed)},
        "matmul_flops_per_s": 2 * effort.matmul_size**3 / fastest_s(matmuls),
        "matmul_counts": f"2 n^3 of a bf16 product with n = {effort.matmul_size}, random operands",
        "matmul_ways": {name: timed.record() for name, timed in matmuls.items() if isinstance(timed, Timed)},
    }


def fastest_s(ways: Mapping[str, Timed | Exception]) -> float:
    """The best way's median; without any way there is nothing to compare with, and the last error says why."""
    timed = [way.median_s for way in ways.values() if isinstance(way, Timed)]
    if not timed:
        raise next(way for way in ways.values() if isinstance(way, Exception))
    return min(timed)


def copy_ways(size_bytes: int) -> dict[str, Timeable]:
    """Ways to copy an array of so many bytes on the device."""
    import jax
    import jax.numpy as jnp

    latest = {"negate": jax.random.bits(jax.random.key(0), (size_bytes // 4,), jnp.uint32)}
    negate = jax.jit(jnp.bitwise_not, donate_argnums=0)  # in place: no allocation, and XLA cannot leave it out
    copy = jax.jit(jnp.copy)

    def negate_in_place() -> None:
        latest["negate"] = negate(latest["negate"])

    def copy_elsewhere() -> None:
        latest["copy"] = copy(latest["negate"])

    def wait() -> None:
        jax.block_until_ready(latest)

    return {"xla_negate_in_place": Timeable(negate_in_place, wait), "xla_copy": Timeable(copy_elsewhere, wait)}


def read(size_bytes: int) -> Timeable:
    """A sum over an array of so many bytes of bf16."""
    import jax
    import jax.numpy as jnp

    numbers = jax.random.normal(jax.random.key(0), (size_bytes // 2,), jnp.bfloat16)
    add_up = jax.jit(lambda numbers: jnp.sum(numbers, dtype=jnp.float32))
    latest = [add_up(numbers)]

    def start() -> None:
        latest[0] = add_up(numbers)

    return Timeable(start, lambda: jax.block_until_ready(latest[0]))


def matmul(
    size: int, dtype: str = "bfloat16", *, transposed: bool = False, options: Mapping[str, Any] | None = None
) -> Timeable:
    """A square product of random operands into bf16.

    Args:
      size: rows and columns. dtype: of the operands. transposed: the right operand lies with its columns first, as
        8-bit units want it. options: of the compiler.
    """
    import jax
    import jax.numpy as jnp

    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16).astype(dtype)
    contracted = (((1,), (1 if transposed else 0,)), ((), ()))
    product = functools.partial(jax.lax.dot_general, dimension_numbers=contracted, preferred_element_type=jnp.bfloat16)
    multiply = jax.jit(product, compiler_options=dict(options or {}))
    latest: list = [None]  # nothing is compiled here: a way that cannot be is left out when it is its turn

    def start() -> None:
        latest[0] = multiply(a, b)

    return Timeable(start, lambda: jax.block_until_ready(latest[0]))
