"""Numbers that are held as tuples of real arrays of one shape, so that the channels stay on the lanes.

    1 plane    real
    2 planes   complex: real, imaginary
    4 planes   matrix 2 x 2: m_00, m_01, m_10, m_11; it acts on vectors of 2 planes

``multiply`` is associative, not commutative: the factor that acts later stands on the left.
"""


def multiply(a: tuple, b: tuple) -> tuple:
    """a b: of two numbers, of two matrices, or of a matrix and a vector."""
    if len(a) == 1:
        return tuple(a[0] * p for p in b)
    if len(a) == 4:
        columns = len(b) // 2
        return tuple(
            a[2 * i] * b[j] + a[2 * i + 1] * b[columns + j] for i in range(2) for j in range(columns)
        )  # fmt: skip
    if len(b) == 1:
        return tuple(p * b[0] for p in a)
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def add(a: tuple, b: tuple) -> tuple:
    """Sum plane by plane."""
    return tuple(p + q for p, q in zip(a, b, strict=True))


def adjoint(a: tuple) -> tuple:
    """Transpose of a matrix, conjugate of a complex number."""
    if len(a) == 4:
        return a[0], a[2], a[1], a[3]
    return (a[0], *(-p for p in a[1:]))


def outer(bar: tuple, state: tuple, planes: int) -> tuple:
    """Cotangent of a factor of ``planes`` planes that was applied to ``state``, for the cotangent ``bar`` of the result."""
    if planes == 4:
        return tuple(b * s for b in bar for s in state)
    return multiply(bar, adjoint(state))[:planes]


def identity(planes: int) -> tuple[float, ...]:
    """The factor that changes nothing."""
    return {1: (1.0,), 2: (1.0, 0.0), 4: (1.0, 0.0, 0.0, 1.0)}[planes]
