"""How numbers are written in everything that is printed about metrics."""


def number(value: float | int, digits: int = 3) -> str:
    """Number with so many significant digits and no exponent; large ones in full.

    >>> number(0.012345), number(98.765), number(123456.0), number(-1e-12), number(1.0)
    ('0.0123', '98.8', '123,456', '0', '1')
    """
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    text = f"{float(f'{value:.{digits}g}'):.10f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
