"""Routed experts: how many are read, and how much the busiest group of chips has to do.

A token chooses `top_k` of `experts`, all equally likely and independent of other tokens; a real router is less even.
Experts are divided over `groups` of chips (the mesh axis `expert`), and a step waits for the busiest group: the mean
plus the spread of one group times what the largest of that many normal variables exceeds its mean by (Blom's formula).
With one group everything is exact. Arguments are numbers or arrays; `tokens` are those of all groups in one pass.

Next: `ops`.
"""

from statistics import NormalDist

from nanoserve.roofline.numeric import Number, maximum, minimum


def expected_experts(experts: int, top_k: int, tokens: Number) -> Number:
    """Returns how many experts `tokens` tokens choose at least once, if each picks `top_k` evenly.

    A real router is uneven and reads fewer; this is the upper end for its mean.
    """
    return experts * (1 - (1 - top_k / experts) ** tokens)


def busiest_experts(experts: int, top_k: int, tokens: Number, groups: int) -> Number:
    """Returns how many distinct experts the busiest of `groups` groups reads; at most all that it holds."""
    if groups == 1:
        return expected_experts(experts, top_k, tokens)
    held = experts / groups
    chosen = 1 - (1 - top_k / experts) ** tokens
    return minimum(held * chosen + _excess(held * chosen * (1 - chosen), groups), held)


def busiest_load(experts: int, top_k: int, tokens: Number, groups: int) -> Number:
    """Returns how many (token, expert) pairs the busiest of `groups` groups computes.

    At least one where there are tokens, at most all that its experts can be chosen for.
    """
    if groups == 1:
        return top_k * tokens
    mean = top_k * tokens / groups
    variance = mean * (1 - 1 / groups) * (experts - top_k) / max(1, experts - 1)  # a token's choices are distinct
    load = maximum(mean + _excess(variance, groups), minimum(tokens, 1))
    return minimum(load, tokens * min(top_k, experts / groups))


def groups_reached(experts: int, top_k: int, groups: int) -> float:
    """Returns how many *other* groups hold one of a token's experts: to each of them it is sent once."""
    missed = 1.0
    for choice in range(top_k):
        missed *= max(0.0, experts - experts / groups - choice) / (experts - choice)
    return (groups - 1) * (1 - missed)


def _excess(variance: Number, groups: int) -> Number:
    """How far the largest of `groups` normal variables is expected above their mean.

    Source: Blom, "Statistical Estimates and Transformed Beta-Variables", 1958: the quantile (n - 3/8) / (n + 1/4).
    """
    positive = variance > 0
    spread = (variance + (1 - positive)) ** 0.5 * positive  # the root of 0 has no slope
    return NormalDist().inv_cdf((groups - 0.375) / (groups + 0.25)) * spread
