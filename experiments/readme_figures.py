"""Makes every figure of README.md again: the roofline picture, and the table between the `figures` marks.

Simulates the default config twice, with calibrated constants and at datasheet limits, so it needs no accelerator and
takes seconds. `tests/test_readme.py` fails when README.md no longer says what this command would write.

    python experiments/readme_figures.py
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from nanoserve.experiment import CONFIG_CLASSES
from nanoserve.replay import Replay, prepare
from nanoserve.report.content import ReportData, Roof, headline
from nanoserve.report.metrics import summarize
from nanoserve.report.plots import roofline_plot
from nanoserve.report.theme import DAY, NIGHT, Plot, variables
from nanoserve.roofline.calibration import provenance
from nanoserve.specs.config import load, resolve

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
PICTURE = Path("docs/img/roofline.svg")
CONFIG = "llama70b_h100"
MARKS = re.compile(r"(<!-- figures: [^\n]* -->\n).*?(<!-- end of figures -->)", re.DOTALL)

_STYLE = (
    f":root {{ {variables(DAY)} }} @media (prefers-color-scheme: dark) {{ :root {{ {variables(NIGHT)} }} }} "
    "svg { font-family: system-ui, sans-serif; background: var(--paper); } "
    "text, tspan { font-family: inherit !important; }"
)


def main() -> int:
    """Runs the command."""
    runs = simulate()
    plot = roofline_plot(runs["calibrated"])
    picture = REPOSITORY / PICTURE
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(standalone(plot))
    block = figures(runs, plot)
    README.write_text(MARKS.sub(lambda found: found[1] + block + found[2], README.read_text()))
    print(block, end="")
    return 0


def simulate() -> dict[str, ReportData]:
    """Runs the default config once for each way of pricing that needs no files but ours."""
    return {mode: _run(mode) for mode in ("calibrated", "sol")}


def figures(runs: dict[str, ReportData], plot: Plot) -> str:
    """The Markdown between the marks: the picture, then one row a number and one column a way of pricing."""
    tiles = [headline(run.summary) for run in runs.values()]
    rows = (
        f"| {row[0].label} | {' | '.join(f'{tile.value} ({tile.detail})' for tile in row)} |"
        for row in zip(*tiles, strict=True)
    )
    return "\n".join(
        (
            f"![The roofline of one H100 with the plans of the run on it. {plot.title}.]({PICTURE})",
            "",
            f"*{plot.title}. {plot.note}*",
            "",
            f"| {CONFIG}, simulated | `Pricing.mode = 'calibrated'` | `Pricing.mode = 'sol'` |",
            "|---|---|---|",
            *rows,
            "",
        )
    )


def standalone(plot: Plot) -> str:
    """A plot of the report as a file of its own, with the report's colours by day and by night."""
    svg = plot.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    start = svg.index(">") + 1
    return f"{svg[:start]}\n<title>{plot.title}</title>\n<style>{_STYLE}</style>{svg[start:]}"


def _run(mode: str) -> ReportData:
    overrides = ("Experiment.executor=roofline", f"Pricing.mode={mode}")
    loaded = load(resolve(CONFIG, REPOSITORY / "configs"), CONFIG_CLASSES, "Experiment", overrides)
    replay = prepare(loaded.value)
    replay.run()
    records = replay.records()
    summary = summarize(records.steps, records.requests, replay.facts.slo, issued=replay.issued)
    return ReportData(
        title=CONFIG,
        how=replay.choice.line,
        summary=summary,
        steps=records.steps,
        requests=records.requests,
        roof=_roof(replay),
        constants=provenance(replay.calibration, replay.facts.cluster.chip),
        operative=loaded.operative,
        environment={},
    )


def _roof(replay: Replay) -> Roof:
    cluster, compute = replay.facts.cluster, replay.experiment.precision.compute
    return Roof(
        chip=cluster.chip.name,
        chips=cluster.count,
        dtype=compute,
        peak_flops_per_s=cluster.chip.peak(compute),
        hbm_bytes_per_s=cluster.chip.hbm_bytes_per_s,
    )


if __name__ == "__main__":
    sys.exit(main())
