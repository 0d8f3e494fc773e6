"""The prose of docs/parallelism.md; `parallelism_page` puts the tables between."""

INTRODUCTION = """
# Parallelism

`Cluster.mesh` says how a model is shared by chips: the sizes of up to four axes, whose product is the number of chips.
Neighbouring chips share `tensor`, then `expert`, then `pipeline`, then `data`.

| axis | what it cuts | what a step then sends |
|---|---|---|
| `tensor` | heads, widths, vocabulary | a sum after attention and one after the feed-forward, in every layer |
| `expert` | experts; besides, heads and vocabulary like `tensor`, or sequences | the same sums, over both axes |
| `pipeline` | layers and their pages, in stages; vocabulary | the residual stream to the next stage, by microbatch |
| `data` | requests | nothing: every replica is an engine of its own |

One table, `RULES` in `nanoserve/model/sharding.py`, maps the axes of every array to those of the mesh. The compiler
divides plain products by it; kernels, experts and stages are functions of one chip under `shard_map`.

- **Experts.** Every chip has all tokens and routes them alike. It takes the (token, expert) pairs of its own group's
  experts, which lie together once pairs are ordered by expert, and one grouped product does them. Shapes do not depend
  on the routing, and nothing is dropped. The sum that ends the layer adds up experts as well as columns.
- **Stages.** A step is cut into as many microbatches as there are stages where its rows and its chunks' tokens divide,
  else it is one. Stage s has microbatch t - s in turn t and hands the stream on by `ppermute`. Embedding, head and
  sampling are shared by all chips. Every kind of step is executed so, the loop of decode steps too.
- **Few KV heads.** Where more chips share the heads than there are KV heads, each has a copy of one.

A mesh that does not divide a model is refused with the number that does not, and with `--executor=auto` simulated.
"""

COMPARED = """
## What was compared

On eight virtual devices of a CPU, in float32, against the same model on one device: tokens equal, log-probabilities
within 1e-5, for prompts, mixed steps, decode steps and loops, greedy and drawn (`tests/model/test_parallel.py`;
`NANOSERVE_ALL_LAYOUTS=1` adds layouts and kinds of steps, int8 weights and pages among them). SmolLM2 gives its
reference's tokens on six devices, and four replicas of two stages on eight
(`tests/executors/test_parallel_smollm2.py`; the eight with `NANOSERVE_ALL_LAYOUTS=1`, seven minutes of compiling).
"""

DIFFERENCES = """
## Executed and priced

`nanoserve/roofline/split.py` prices what `nanoserve/model/sharding.py` executes, with these exceptions:

- `Cluster.expert_divides = 'sequences'`, the default, gives each group of experts sequences of its own, and sends
  tokens to their experts and back. It is priced only; `'heads'` is priced and executed.
- A step of a pipeline ends before the next begins: S stages take 2 S - 1 turns and work in S of them, so that layers
  take 1.5 times as long with two stages. Calibrated prices have those turns. Datasheet limits, as above, do not: an
  engine with several batches under way could fill them.
- The stream that leaves the last stage is summed over all stages, once a step; that is not priced. The head that a
  price puts on the last stage is shared by all chips, which is less work and as much memory.
- For GPUs and CPUs, XLA multiplies every pair with every expert that a chip holds; the price is of the chosen ones.
"""

PROCESSES = """
## Several processes

```
python experiments/run.py --config=NAME --coordinator=host0:1234 --processes=2 --process=0     # on host0
python experiments/run.py --config=NAME --coordinator=host0:1234 --processes=2 --process=1     # on host1
```

The mesh is over the devices of all processes (`jax.distributed`). Each process reads the config, the trace and the
weights, and runs the same scheduler; what would differ between them is what they measure, so the first process's
clock, its estimates and its signals are everybody's, each a broadcast of 16 bytes
(`nanoserve/executors/processes.py`). Only the first one prints and writes. A test runs two processes on one machine,
with a device each and one mesh over both: the tokens are those of one process (`tests/experiments/test_processes.py`).
Snapshots, pages swapped to the host, `--compare_executors` and several replicas want one process.
"""
