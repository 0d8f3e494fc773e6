import io

from nanoserve.report.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class HandClock:
    """Seconds that are set by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_away_from_a_terminal_there_is_one_line_every_ten_seconds():
    clock, stream = HandClock(), io.StringIO()
    with Progress(2000, "requests", stream=stream, clock=clock) as progress:
        for second in range(25):
            clock.now_s = float(second)
            progress.update(second * 10, rate=1234.5, waiting=7)
    assert stream.getvalue().splitlines() == [
        "requests: 100 of 2,000 (5%) after 10 s, rate 1,234, waiting 7",
        "requests: 200 of 2,000 (10%) after 20 s, rate 1,234, waiting 7",
    ]


def test_the_last_state_can_be_shown_at_the_end():
    stream = io.StringIO()
    Progress(0, "requests", stream=stream, clock=HandClock()).close(0)
    assert stream.getvalue() == "requests: 0 of 0 after 0 s\n"


def test_a_terminal_gets_a_bar_and_its_cursor_back():
    clock, stream = HandClock(), Terminal()
    with Progress(10, "requests", stream=stream, clock=clock) as progress:
        clock.now_s = 1.0
        progress.update(4, phase="decode")
    shown = stream.getvalue()
    assert "4/10" in shown and "phase decode" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_nothing_is_formatted_until_it_is_due():
    class Loud:
        def __str__(self) -> str:
            raise AssertionError("formatted although nothing was due")

    Progress(10, "requests", stream=io.StringIO(), clock=HandClock()).update(1, field=Loud())
