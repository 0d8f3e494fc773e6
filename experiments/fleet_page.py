"""What docs/fleet.md says between its tables; `fleet` makes the tables."""

INTRODUCTION = """
# Replicas, and prefill apart from decoding

## Replicas

`Cluster.mesh = {'tensor': 8, 'data': 2}` is two engines of eight chips with one load. Each has a scheduler, pages and
chips of its own; `engine/fleet.py` routes every request at its arrival (`Fleet.router`, functions in
`engine/routing.py`) and goes from event to event. A simulated fleet is exact: no engine plans beyond the next moment at
which a request could reach it, so gathering steps changes nothing, and with one replica the records are those of the
engine alone, byte for byte (`tests/engine/test_fleet.py`). Executed, every free replica is given its plan before a
result is awaited, so the devices work side by side; tokens are those of one engine (`tests/executors/test_fleet.py`, on
virtual devices).

A router knows what a router in front of real servers knows: what it sent where, what came back, sessions, and what the
prefix caches hold. A function of one's own has a name:

```python
from nanoserve.engine.routing import register_route

register_route("first", lambda request, views, now_ticks: 0)
```

## Two pools

`Disaggregation.decode_mesh` gives decoding a pool of its own; `Cluster` and `Engine` are then the prefill pool's, and
`Disaggregation.decode_engine` says which fields of `Engine` differ. A request's first token comes from the prefill
pool. Its KV leaves over the network of the replica's chips, one request after the other, at the datasheet's rate
(`roofline/transfer.py`), and the request waits in the decode replica's own queue until there are a slot and pages.
Until then its pages in the prefill pool stay taken: a full decode pool holds up the one before it. With
`overlap = 'layers'` the KV of a layer leaves while the next is computed, as far as the last chunk of a prompt goes.
What receives is not bounded, and neither are hosts and switches between. A sequence that is preempted is computed again
where it decodes.

Executed, pages are gathered on the source's devices, put where the target's pool lives, and scattered there, whatever
the two meshes are; tokens are those of one engine. The time they take is then part of the step that takes them. A draft
model does not go with two pools.

## Sixteen H100, six ways

Made by `python experiments/fleet.py`: Llama-3.1-70B in bfloat16, simulated in calibrated mode, under the first
REQUESTS requests of the published Azure conversation trace, sped up. `2 x 8, together` is two replicas of eight chips.
Goodput is requests per second with TTFT within 2 s and TPOT within 200 ms, and for `interactive` within 450 ms and
40 ms (MLPerf's limits for Llama-2-70B). *Busy* is the share of time in plans, of each pool. The constants are
calibrated on single engines; no published run of two pools was held against these.
"""

VERDICT = """
### When it pays

Apart, a decode step never carries a chunk of somebody else's prompt: the 99th percentile of the gaps between tokens is
close to their median at every rate, where together it is the length of a step full of prompts. That is worth something
where the limit on TPOT is tight and the split matches the load. Smaller chunks together buy some of it, and pay with
prefill that is slower for everybody.

It loses where the split does not match: chips of one pool cannot help the other, so two equal pools have one that is
full and one that is not, and the first tokens queue. It loses beyond saturation, where together all chips do whatever
there is to do. And below it, at the loose limits, both serve all there is, at the same price.

The wait between a request's first token and its second, while its KV moves and a slot is found, is in TPOT and E2E. It
is in no gap of ITL, whose gaps are those of decode steps; that is why TPOT can be far beyond ITL where the decode pool
is full.
"""

RATES = """
## How many replicas should prefill

`roofline/rates.py` says it from prices and lengths alone: a prefill replica runs full steps, a decode replica as many
sequences as slots, pages and the limit on a token's time allow. `tests/roofline/test_rates.py` simulates the advice:
at 95% of the advised split's capacity both pools are as full as was said (within 3% of the time for prefill, 6% of the
slots for decoding), and a replica more or less for prefill more than halves the goodput. Here, for the trace above:
"""

LINKS = """
## What the way costs

From the end of the prompt to the moment when the KV is in the other pool, waiting for the link included.
"""

ROUTING = """
## Routers and prefix caches

Llama-3.1-8B on four replicas of one H100 under the first requests of the published Mooncake conversation trace, whose
prompts share prefixes, at its own rate. The trace does not state sessions, so `session_affinity` is `least_loaded`
there.
"""
