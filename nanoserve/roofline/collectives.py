"""What one chip sends in a step, axis by axis: sums over `tensor`, tokens over `expert`, activations over `pipeline`.

Each is an `Op` of kind `collective` with the bytes that a ring would send and the share of the best all-reduce that its
pattern and topology allow. Next: `links`, `timing`.
"""

import dataclasses
from collections.abc import Iterator

from nanoserve.roofline.counts import Count
from nanoserve.roofline.links import Pattern, axis_links, sent_bytes
from nanoserve.roofline.moe import groups_reached
from nanoserve.roofline.op import Op
from nanoserve.roofline.work import Work
from nanoserve.specs.chips import ClusterSpec
from nanoserve.specs.models import MoeSpec


def collectives(work: Work) -> Iterator[Op]:
    """Yields the collectives of a plan; none for one chip."""
    if work.split.head_ways > 1:
        yield all_reduce(work)
        yield gather_logits(work)
    if work.split.sequence_groups > 1 and work.model.moe is not None:
        yield exchange(work, work.model.moe, "dispatch")
        yield exchange(work, work.model.moe, "combine")
    if work.split.pipeline > 1:
        yield send(work)


def all_reduce(work: Work) -> Op:
    """Two sums of the residual stream per layer: after `o` and after `down`."""
    message = 2 * work.layers() * work.new_tokens * work.model.hidden * work.activation_bytes
    op = _over(_sharing(work), "tensor", "all_reduce", "all_reduce", message, 2 * work.layers() * work.passes)
    return dataclasses.replace(op, idle=work.idle)


def gather_logits(work: Work) -> Op:
    """Every chip that shares the vocabulary gets the logits of the others."""
    sampled = work.counts.sampled
    message = sampled * work.model.vocab * work.activation_bytes
    return _over(_sharing(work), "tensor", "gather_logits", "all_gather", message, work.passes * (sampled > 0))


def exchange(work: Work, moe: MoeSpec, name: str) -> Op:
    """Tokens to the groups that hold their experts (`dispatch`), or their sums back (`combine`).

    A token goes once to each other group that has one of its experts, which adds up what its experts give.
    """
    groups = work.split.expert
    layers = work.layers(work.model.layers - moe.dense_layers)
    reached = groups_reached(moe.experts, moe.top_k, groups) * groups / (groups - 1)  # a ring's message counts itself
    message = layers * work.new_tokens * reached * work.model.hidden * work.activation_bytes
    op = _over(work.cluster, "expert", name, "all_to_all", message, layers * work.passes)
    return dataclasses.replace(op, idle=work.idle)


def send(work: Work) -> Op:
    """The residual stream to the next stage, once a microbatch; a chip sends to the one in its own place there."""
    message = work.new_tokens * work.model.hidden * work.activation_bytes
    op = _over(work.cluster, "pipeline", "send", "send", message, work.passes)
    return dataclasses.replace(op, idle=work.idle)


def _sharing(work: Work) -> ClusterSpec:
    """The cluster with all chips that share a layer along its axis `tensor`."""
    split, cluster = work.split, work.cluster
    if split.head_ways == split.tensor:
        return cluster
    return dataclasses.replace(cluster, mesh={**cluster.mesh, "tensor": split.head_ways, "expert": 1})


def _over(cluster: ClusterSpec, axis: str, name: str, pattern: Pattern, message_bytes: Count, launches: Count) -> Op:
    links = axis_links(cluster, axis)
    return Op(
        name=name,
        kind="collective",
        link_bytes=sent_bytes(pattern, message_bytes, links.ways),
        launches=launches,
        ways=links.ways,
        link_share=links.share(pattern),
    )
