"""What `compile.py --kernels` adds: the kernels that a compiled GPU program launches, as lines and as plain numbers."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nanoserve.report.units import significant

if TYPE_CHECKING:
    from nanoserve.executors.aot_kernels import KernelReport

MB = 1e6


def lines(report: "KernelReport") -> Iterator[str]:
    """The lines that a person reads: of a layer every kernel, outside the layers their number by operation."""
    host = report.host
    yield (
        f"  launches of a step: {significant(report.of_a_layer)} of each layer, {significant(report.outside)} others, "
        f"{significant(report.of_a_layer * report.layers + report.outside)} in all; "
        f"{report.extra_bytes / MB:,.1f} MB moved beside what products and attention read"
    )
    yield (
        f"  the host, in a call: {significant(host.launches)} launches, {significant(host.command_buffers)} of them "
        f"command buffers, and {significant(host.waits)} waits for the device"
    )
    yield f"    {'a layer: operation':<22}{'kind':<22}{'times':>6}{'MB each':>10}  name"
    for each in report.kernels:
        if each.in_layers:
            times = each.times / report.layers / report.steps
            moved = f"{each.moved_bytes / MB:>10.3f}"
            yield f"    {each.operation:<22}{each.kind:<22}{significant(times):>6}{moved}  {each.name}"
    yield f"    {'outside the layers':<22}{'kinds':<22}{'times':>6}{'MB':>10}"
    outside = sorted((each for each in report.kernels if not each.in_layers), key=lambda each: each.operation)
    for operation, group in itertools.groupby(outside, key=lambda each: each.operation):
        of_one = list(group)
        times = sum(each.times for each in of_one) / report.steps
        moved = sum(each.times * each.moved_bytes for each in of_one) / report.steps
        kinds = len({each.kind for each in of_one})
        yield f"    {operation:<22}{kinds:<22}{significant(times):>6}{moved / MB:>10.3f}"


def figures(report: "KernelReport") -> dict[str, Any]:
    """The report as plain numbers."""
    return {
        **dataclasses.asdict(report),
        "of_a_layer": report.of_a_layer,
        "outside": report.outside,
    }
