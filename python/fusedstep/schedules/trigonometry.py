"""
The cosine of schedules, with the same bits on every platform: additions, subtractions and multiplications in float64.

The cosine of a C library will not do: glibc picks another version on another processor, with other last bits.
"""

__all__ = ["cos_pi"]

_SPLIT = 2.0**40 + 1  # splits a number into its first 13 bits and the rest (Dekker 1971)
# pi with 40 bits and what it lacks, and -pi**3/3!, pi**5/5!, ...: products of 13 bits and 40 bits are exact.
_PI, _PI_REST = 3.1415926535883045, 1.4887094960973246e-12
_SINE = (
    -5.16771278004997,
    2.5501640398773455,
    -0.5992645293207921,
    0.08214588661112823,
    -0.0073704309457143504,
    0.00046630280576761255,
    -2.1915353447830217e-05,
    7.952054001475513e-07,
)
# pi**2/2! with 27 bits and what it lacks, and pi**4/4!, -pi**6/6!, ...: the product with a square of 13 bits is exact.
_HALF_PI2, _HALF_PI2_REST = 4.934802174568176, 2.5976503039885996e-08
_COSINE = (
    4.0587121264167685,
    -1.3352627688545895,
    0.2353306303588932,
    -0.02580689139001406,
    0.0019295743094039231,
    -0.0001046381049248457,
    4.303069587032947e-06,
)


def cos_pi(x: float) -> float:
    """Return the cosine of pi times x, for x >= 0, with an error below one unit in the last place."""
    x = float(x) % 2.0  # exact, and so are the subtractions that bring x into the first eighth of a turn
    if x > 1:
        x = 2 - x
    if x > 0.5:
        return -cos_pi(1 - x)
    return _sine(0.5 - x) if x > 0.25 else _cosine(x)


def _sine(x: float) -> float:
    """Return sin(pi x) for x from 0 to 1/4."""
    high = x * _SPLIT
    high = high - (high - x)
    square = x * x
    return high * _PI + ((x - high) * _PI + (x * _PI_REST + x * (square * _polynomial(_SINE, square))))


def _cosine(x: float) -> float:
    """Return cos(pi x) for x from 0 to 1/4."""
    high = x * _SPLIT
    high = high - (high - x)
    square = x * x
    exact = high * high * _HALF_PI2
    rest = (
        (x + high) * (x - high) * _HALF_PI2 + square * _HALF_PI2_REST - square * (square * _polynomial(_COSINE, square))
    )
    near = 1 - exact
    return near + ((1 - near - exact) - rest)


def _polynomial(coefficients: tuple[float, ...], x: float) -> float:
    result = 0.0
    for coefficient in reversed(coefficients):
        result = result * x + coefficient
    return result
