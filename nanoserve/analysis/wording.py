"""Numbers as sentences say them."""


def counted(number: int, thing: str) -> str:
    """`1 row`, `2,000 rows`: a number and its noun, which takes an s."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def figure(value: float) -> str:
    """Three digits that say something, and no exponent: `0.0717`, `20.8`, `126,195`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
