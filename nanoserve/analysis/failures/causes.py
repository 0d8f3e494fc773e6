"""Which causes a service's logs name, in order, and what remains that none of them explains.

What remains is the load itself (`load`). It is told beside the causes and never ranked among them, since no fault is
there to mend: if it is too much, the answer is capacity. Next: `counterfactual`, which replays the config without a
cause.
"""

import dataclasses

from nanoserve.analysis.failures.case import Case
from nanoserve.analysis.failures.cause import Cause
from nanoserve.analysis.failures.hypotheses import HYPOTHESES
from nanoserve.analysis.failures.load import load_itself
from nanoserve.analysis.finding import Finding, not_computed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The causes of one service.

    Attributes:
      ranked: all hypotheses, by score, those that could not be weighed last. lost: share of the service that is lost.
      rows: requests behind it. load: what the load itself costs (`load.load_itself`).
    """

    ranked: tuple[Cause, ...]
    lost: float
    rows: int
    load: Finding

    @property
    def named(self) -> tuple[Cause, ...]:
        """The causes that explain enough, surely enough, first the one that explains most."""
        return tuple(cause for cause in self.ranked if cause.named)

    @property
    def left(self) -> float:
        """Share of the service that is lost to none of them: what the load costs on this machine."""
        return max(0.0, self.lost - sum(cause.explained * cause.strength for cause in self.named))

    def findings(self) -> list[Finding]:
        """`causes.ranking`, then one finding a cause, in order, and `causes.load`."""
        if not self.rows:
            return [not_computed("causes.ranking", "Causes", "there are no requests")]
        if all(cause.missing for cause in self.ranked):
            why = "no hypothesis can be weighed: " + "; ".join(
                f"{cause.name}: {cause.missing}" for cause in self.ranked
            )
            return [not_computed("causes.ranking", "Causes", why)]
        return [self._ranking(), *(cause.finding(self.rows) for cause in self.ranked), self.load]

    def _ranking(self) -> Finding:
        scores = {cause.name: cause.score for cause in self.ranked if cause.missing is None}
        return Finding(
            key="causes.ranking",
            title=self._title(),
            rows=self.rows,
            values={
                "named": [cause.name for cause in self.named],
                "lost_share": self.lost,
                "left_to_load": self.left,
                "scores": scores,
                "not_weighed": [cause.name for cause in self.ranked if cause.missing is not None],
            },
            because=(
                f"A failed request loses 1, one that took twice its time 0.5; the mean over {self.rows:,} is "
                f"{self.lost:.2%}.",
                "A score is the share that a cause explains, times how surely the logs show it at work.",
                f"{self.left:.2%} is left to the load itself: lines behind bursts and long prompts, and full batches.",
            ),
        )

    def _title(self) -> str:
        if not self.named:
            return f"No cause is named: {self.lost:.1%} of the service is lost, and none of the faults shows"
        first, many = self.named[0], len(self.named)
        return f"{'The cause' if many == 1 else f'The first of {many} causes'}: {first.says} ({first.score:.1%})"


def diagnose(case: Case) -> Diagnosis:
    """Weighs every hypothesis against the logs.

    Args:
      case: made of them.
    """
    rows = case.service.requests.height
    causes = [hypothesis(case) for hypothesis in HYPOTHESES] if rows else []
    ranked = sorted(causes, key=lambda cause: (cause.missing is not None, -cause.score, cause.name))
    return Diagnosis(ranked=tuple(ranked), lost=case.loss.mean, rows=rows, load=load_itself(case))
