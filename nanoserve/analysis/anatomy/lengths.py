"""How long prompts and answers are: histograms, tails, and how the two go together.

Prompts are those of all requests, answers those of requests that did not fail: a failed one has none, or a part.
"""

import numpy as np

from nanoserve.analysis.anatomy.counting import counts_of, served
from nanoserve.analysis.anatomy.sketch import Counts
from nanoserve.analysis.anatomy.tails import fit_tail
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.logs.log_set import Joined

_BINS_AN_OCTAVE = 2
_CURVE_POINTS = 300
_SHOWN_PAIRS = 2000
_TOP = 0.01


def lengths(joined: Joined) -> list[Finding]:
    """`anatomy.lengths.prompt`, `.response` and their `.tail`.

    Series: `edges_tokens` and `requests`, a histogram in half octaves; `tokens` and `share_at_least`, the
    complementary cumulative distribution. Of tails: `tokens`, `share_at_least` and what both fits make of it,
    `power_law` and `lognormal`, all as shares of the tail.
    """
    found = []
    for what, only in (("prompt", None), ("response", served(joined))):
        counts = counts_of(joined, f"{what}_tokens", only)
        found += [_lengths(what, counts), _tail(what, counts)]
    return found


def pair(joined: Joined) -> Finding:
    """`anatomy.lengths.pair`: whether long prompts have long answers.

    Spearman's rank correlation with ties at their mean rank. Series: `prompt_edges`, `response_edges` and `requests`
    [prompt, response], counts in half octaves; `prompt_tokens` and `response_tokens` of some requests, evenly spread
    over the log.
    """
    key, columns = "anatomy.lengths.pair", ("prompt_tokens", "response_tokens")
    counts = [counts_of(joined, column, served(joined)) for column in columns]
    if min(len(count.values) for count in counts) < 2:
        return not_computed(key, "Prompts against answers", "fewer than two lengths of prompts or of answers")
    edges = [_edges(count) for count in counts]
    bins_of = [_bins(count, edge) for count, edge in zip(counts, edges, strict=True)]
    rank_of = [_centred_ranks(count) for count in counts]
    shape = [len(edge) - 1 for edge in edges]
    joint, product = np.zeros(np.prod(shape), np.int64), 0.0
    shown, every = [], max(1, joined.rows // _SHOWN_PAIRS)
    for part in joined.batches(*columns, *(["status"] if joined.has("status") else [])):
        prompt, response = (column.to_numpy() for column in part.filter(served(joined)).select(columns))
        joint += np.bincount(bins_of[0][prompt] * shape[1] + bins_of[1][response], minlength=len(joint))
        product += float(np.dot(rank_of[0][prompt], rank_of[1][response]))
        shown.append(np.stack([prompt, response])[:, ::every])
    squares = [np.dot(np.square(rank[count.values]), count.times) for rank, count in zip(rank_of, counts, strict=True)]
    correlation = product / float(np.sqrt(squares[0]) * np.sqrt(squares[1]))
    points = np.concatenate(shown, axis=1)[:, :_SHOWN_PAIRS]
    return Finding(
        key=key,
        title=f"{_in_words(correlation)}: their rank correlation is {correlation:.2f}",
        rows=counts[0].count,
        values={"rank_correlation": correlation},
        series={
            "prompt_edges": edges[0],
            "response_edges": edges[1],
            "requests": joint.reshape(shape),
            "prompt_tokens": points[0],
            "response_tokens": points[1],
        },
    )


def _lengths(what: str, counts: Counts) -> Finding:
    if not counts.total:
        return not_computed(f"anatomy.lengths.{what}", f"Lengths of {what}s", "every one has 0 tokens")
    edges = _edges(counts)
    p50, p95, p99 = counts.quantiles((0.5, 0.95, 0.99)).tolist()
    top = counts.share_held_by_top(_TOP)
    tokens, at_least = at_least_curve(counts)
    whole = "Prompts" if what == "prompt" else "Answers"
    return Finding(
        key=f"anatomy.lengths.{what}",
        title=f"{whole}: {p50:,.0f} tokens in the middle, {p99:,.0f} at p99; the longest 1% hold {top:.1%} of tokens",
        rows=counts.count,
        values={
            "mean_tokens": counts.mean,
            "std_tokens": counts.std,
            "p50_tokens": p50,
            "p95_tokens": p95,
            "p99_tokens": p99,
            "most_tokens": int(counts.values[-1]),
            "share_held_by_top_1_percent": top,
        },
        series={
            "edges_tokens": edges,
            "requests": np.histogram(counts.values, edges, weights=counts.times)[0],
            "tokens": tokens,
            "share_at_least": at_least,
        },
    )


def _tail(what: str, counts: Counts) -> Finding:
    key, subject = f"anatomy.lengths.{what}.tail", f"Tail of the {what} lengths"
    tail = fit_tail(counts)
    if tail is None:
        return not_computed(key, subject, "fewer than fifty requests, or fewer than two lengths, to fit")
    inside = counts.values >= tail.least
    tokens, at_least = at_least_curve(Counts(counts.values[inside], counts.times[inside]))
    share = tail.rows / counts.count
    verdict = {
        "power law": f"follow a power law with exponent {tail.alpha:.2f}, not a lognormal",
        "lognormal": "follow a lognormal, not a power law",
        "undecided": f"fit a power law with exponent {tail.alpha:.2f} and a lognormal alike",
    }[tail.verdict]
    return Finding(
        key=key,
        title=f"From {tail.least:,} tokens on {'prompts' if what == 'prompt' else 'answers'} {verdict}",
        rows=tail.rows,
        values={
            "least_tokens": tail.least,
            "tail_share": share,
            "alpha": tail.alpha,
            "ks_distance": tail.distance,
            "mu": tail.mu,
            "sigma": tail.sigma,
            "vuong_ratio": tail.ratio,
            "p_value": tail.p_value,
            "verdict": tail.verdict,
        },
        series={
            "tokens": tokens,
            "share_at_least": at_least,
            "power_law": tail.power_law_at_least(tokens),
            "lognormal": tail.lognormal_at_least(tokens),
        },
        because=(
            f"the tail has {share:.1%} of the requests",
            f"Vuong's statistic is {tail.ratio:.2f} (positive for the power law), p = {tail.p_value:.2g}",
            f"the power law is at most {tail.distance:.3f} from the data (Kolmogorov-Smirnov)",
        ),
    )


def at_least_curve(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Some lengths, evenly spread over their logarithm, and the share of values that are at least so long."""
    at_least = np.cumsum(counts.times[::-1])[::-1] / counts.count
    low, high = max(int(counts.values[0]), 1), max(int(counts.values[-1]), 1)
    wanted = np.geomspace(low, high, _CURVE_POINTS)
    places = np.unique(np.clip(np.searchsorted(counts.values, wanted), 0, len(counts.values) - 1))
    return counts.values[places].astype(np.float64), at_least[places]


def _edges(counts: Counts) -> np.ndarray:
    """Half octaves that cover all lengths, 0 in the first."""
    most = max(int(counts.values[-1]), 1)
    octaves = int(np.ceil(np.log2(most + 1)))
    return np.concatenate([[0.0], 2.0 ** (np.arange(octaves * _BINS_AN_OCTAVE + 1) / _BINS_AN_OCTAVE)])


def _bins(counts: Counts, edges: np.ndarray) -> np.ndarray:
    """Length -> the bin that it is in."""
    return np.searchsorted(edges, np.arange(counts.values[-1] + 1), side="right") - 1


def _centred_ranks(counts: Counts) -> np.ndarray:
    """Length -> the mean rank of the values of this length, less the mean of all ranks."""
    ranks = np.zeros(counts.values[-1] + 1)
    ranks[counts.values] = np.cumsum(counts.times) - (counts.times - 1) / 2 - (counts.count + 1) / 2
    return ranks


def _in_words(correlation: float) -> str:
    if abs(correlation) < 0.1:
        return "The length of a prompt says little about its answer's"
    return f"Long prompts tend to have {'long' if correlation > 0 else 'short'} answers"
