"""The chatbot service that is shipped as a trace: a week of it, with the statistics that such services publish.

Prompts have median 128, mean 512, 95th percentile 2,048, 99th 4,096 and at most 8,192 tokens; the rate swings between
25 and 520, scaled to the mean that is asked for; half of the gaps are under 10 ms; answers go with prompts at a rank
correlation of 0.4. `tests/trace/test_week.py` holds the generator to these within 10%. Next: `week`, how it is made.
"""

from nanoserve.trace.arrivals import WeeklyBursts
from nanoserve.trace.lengths import Quantiles
from nanoserve.trace.week import Region, Talk, WeekSpec

# Requests per second in the hours from 0:00 to 23:00 UTC.
_WEEKDAY = (
    *(95, 60, 40, 30, 25, 30, 55, 110, 210, 330, 430, 490),
    *(470, 480, 520, 510, 480, 430, 380, 340, 310, 270, 210, 145),
)
_WEEKEND = (
    *(120, 80, 55, 40, 32, 28, 34, 55, 90, 140, 190, 230),
    *(250, 255, 250, 240, 235, 230, 235, 250, 260, 240, 200, 150),
)
_REGIONS = {
    "us-east": Region(share=0.35, peak_hour=18.0),
    "us-west": Region(share=0.15, peak_hour=21.0),
    "eu-west": Region(share=0.3, peak_hour=13.0),
    "ap-south": Region(share=0.2, peak_hour=9.0),
}
_PROMPT = Quantiles(
    levels=(0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0),
    tokens=(4, 14, 45, 128, 470, 1350, 2048, 4096, 8192),
)
# First turns are what `_PROMPT` leaves for them when later turns, which have their history, are taken out of it.
_TALK = Talk(
    first=Quantiles(
        levels=(0.0, 0.05, 0.1, 0.25, 0.5, 0.6, 0.7, 0.77, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0),
        tokens=(4, 10, 14, 29, 67, 93, 118, 141, 380, 780, 1290, 1740, 2080, 3100, 4000, 8192),
    ),
    later=Quantiles(levels=(0.0, 0.1, 0.5, 0.9, 0.99, 1.0), tokens=(3, 6, 16, 50, 200, 800)),
    answer=Quantiles(levels=(0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0), tokens=(1, 6, 24, 56, 120, 340, 480, 600)),
    prompt=_PROMPT,
    correlation=0.42,
    short_turns=1.45,
    long_turns=6.0,
    long_share=0.07,
    least_think_s=8.0,
    think_s=35.0,
    think_sigma=0.8,
    max_prompt_tokens=8192,
)
MEAN_RATE_RPS = 100_000 / (7 * 86400)


def chatbot_week(requests: int, rate_rps: float = MEAN_RATE_RPS) -> WeekSpec:
    """The spec of the chatbot's week, or of so many requests of it, at a mean rate.

    Args:
      requests: how many; `rate_rps` times a week's seconds make a whole week. rate_rps: mean over a whole week.
    """
    arrivals = WeeklyBursts(rate_rps=rate_rps, weekday=_WEEKDAY, weekend=_WEEKEND, tail=2.4, most=250, gap_s=0.002)
    return WeekSpec(name="chatbot_week", requests=requests, arrivals=arrivals, talk=_TALK, users=4000, regions=_REGIONS)
