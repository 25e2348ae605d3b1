"""ConstrINT: a solver of constraints over non-negative integers, for tile sizes (Pöppel, Beck, Hochreiter 2024, FlashRNN).

    solve(
        '''
        rows % 8 == 0;
        batch % rows == 0;
        2 * gates * dim^2 + 4 * rows * dim * buffers <= memory;
        buffers == [2, 3];
        ''',
        {"batch": 64, "gates": 4, "dim": 128, "memory": 2**20},
        {"rows": "largest"},
    )

Grammar; there is no subtraction and no division, so that every term grows with each of its variables::

    constraints = { constraint ";" }
    constraint  = relation { "|" ( relation | term ) }    one of them holds; of a bare term, compared with the same left side
    relation    = term "==" term | term "<=" term | term "%" term "==" "0"
    term        = product { "+" product }
    product     = power { "*" power }
    power       = atom [ "^" integer ]
    atom        = integer | name | "[" integer { "," integer } "]"       a list: some value of it

A domain is a sorted set of values while it has no more than ``LIMIT``, otherwise an interval whose values are multiples of
one number and divide another. Propagation computes the domain of every term from those of its variables, intersects it with
what the constraint allows and projects it back, until nothing changes. Then the first variable that is not fixed, in the
order asked for, takes its largest or smallest value, and where that fails loses it. Stores that have failed are remembered.
"""

import bisect
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

LIMIT = 2048  # values of a domain that is kept as a set
LARGEST = 2**31 - 1  # of a variable without a domain
ROUNDS = 64  # of propagation; bounds that creep by one are left to the search
FACTORISED = 2**40  # numbers up to this have their divisors listed


class InfeasibleError(ValueError):
    """No assignment satisfies the constraints."""


class _Empty(Exception):
    """A domain has run empty."""


@dataclasses.dataclass(frozen=True)
class Domain:
    """The sorted ``values``; if None, multiples of ``divisor`` in ``low`` .. ``high`` that divide ``multiple`` (0: any)."""

    low: int
    high: int
    divisor: int = 1
    multiple: int = 0
    values: tuple[int, ...] | None = None

    def __contains__(self, value: int) -> bool:
        if self.values is not None:
            place = bisect.bisect_left(self.values, value)
            return place < len(self.values) and self.values[place] == value
        fits = self.low <= value <= self.high and value % self.divisor == 0
        return fits and (not self.multiple or (value > 0 and self.multiple % value == 0))

    @property
    def fixed(self) -> bool:
        """Whether one value is left."""
        return self.low == self.high


def among(values: Iterable[int]) -> Domain:
    """The domain of these values, an interval around them if they are too many; ``_Empty`` if there are none."""
    values = tuple(sorted(set(values)))
    if not values:
        raise _Empty
    if len(values) > LIMIT:
        return Domain(values[0], values[-1], math.gcd(*values) or 1)
    return Domain(values[0], values[-1], math.gcd(*values) or 1, 0, values)


def between(low: int, high: int, divisor: int = 1, multiple: int = 0) -> Domain:
    """Multiples of ``divisor`` from ``low`` to ``high`` that divide ``multiple`` (0: any number does)."""
    if multiple:
        low, high = max(low, 1), min(high, multiple)
        if multiple <= FACTORISED:
            return among(d for d in divisors(multiple) if low <= d <= high and d % divisor == 0)
    low, high = max(0, -(-low // divisor) * divisor), high // divisor * divisor
    if low > high:
        raise _Empty
    if (high - low) // divisor < LIMIT:
        return among(v for v in range(low, high + 1, divisor) if not multiple or multiple % v == 0)
    return Domain(low, high, divisor, multiple)


@functools.lru_cache(4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors of a positive number, ascending."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


def intersect(a: Domain, b: Domain) -> Domain:
    """What is in both."""
    if a.values is None and b.values is None:
        multiple = math.gcd(a.multiple, b.multiple)
        return between(max(a.low, b.low), min(a.high, b.high), math.lcm(a.divisor, b.divisor), multiple)
    few, other = (a, b) if b.values is None or (a.values is not None and len(a.values) <= len(b.values)) else (b, a)
    return few if few == other else among(v for v in few.values if v in other)


def unite(a: Domain, b: Domain) -> Domain:
    """A domain that has everything of both."""
    if a.values is not None and b.values is not None:
        return among(a.values + b.values)
    return between(min(a.low, b.low), max(a.high, b.high), math.gcd(a.divisor, b.divisor))


# A term is ("var", name), ("const", n), ("power", term, n), ("sum", terms) or ("product", terms); a list in the text is a
# variable that the solution does not show.
Term = tuple
Store = dict[str, Domain]


def _value(term: Term, values: Mapping[str, int]) -> int:
    kind, what = term[:2]
    if kind == "const":
        return what
    if kind == "var":
        return values[what]
    if kind == "power":
        return _value(what, values) ** term[2]
    return (sum if kind == "sum" else math.prod)(_value(t, values) for t in what)


def _combine(kind: str, domains: Sequence[Domain]) -> Domain:
    """Domain of the sum or product of independent members of ``domains``."""
    function = sum if kind == "sum" else math.prod
    low, high = function(d.low for d in domains), function(d.high for d in domains)
    if all(d.values is not None for d in domains) and math.prod(len(d.values) for d in domains) <= LIMIT:
        return among(function(v) for v in itertools.product(*(d.values for d in domains)))
    divisor = math.gcd(*(d.divisor for d in domains)) if kind == "sum" else math.prod(d.divisor for d in domains)
    return between(low, high, divisor)


def _domain(term: Term, store: Store) -> Domain:
    """Bottom-up: what ``term`` can be."""
    kind, what = term[:2]
    if kind == "const":
        return among([what])
    if kind == "var":
        return store[what]
    if kind == "power":
        base, power = _domain(what, store), term[2]
        if base.values is not None:
            return among(v**power for v in base.values)
        return between(base.low**power, base.high**power, base.divisor**power)
    return _combine(kind, [_domain(t, store) for t in what])


def _project(term: Term, allowed: Domain, store: Store) -> None:
    """Top-down: takes from the variables of ``term`` what cannot give it a value in ``allowed``."""
    kind, what = term[:2]
    if kind == "const":
        if what not in allowed:
            raise _Empty
    elif kind == "var":
        store[what] = intersect(store[what], allowed)
    elif kind == "power":
        base, power = _domain(what, store), term[2]
        if power == 0:
            if 1 not in allowed:
                raise _Empty
        elif base.values is not None:
            _project(what, among(v for v in base.values if v**power in allowed), store)
        else:
            _project(what, between(_root_up(allowed.low, power), _root_down(allowed.high, power)), store)
    else:
        split = _summand if kind == "sum" else _factor
        for i, part in enumerate(what):
            others = [_domain(t, store) for j, t in enumerate(what) if j != i]
            one = _domain(part, store)
            _project(part, split(one, _combine(kind, others), allowed) if others else allowed, store)


def _summand(part: Domain, rest: Domain, allowed: Domain) -> Domain:
    """Values v of ``part`` for which some w of ``rest`` has v + w in ``allowed``."""
    part = intersect(part, between(max(0, allowed.low - rest.high), allowed.high - rest.low))
    if part.values is not None:
        if rest.fixed:
            return among(v for v in part.values if v + rest.low in allowed)
        if allowed.values is not None and len(part.values) * len(allowed.values) <= LIMIT:
            return among(v for v in part.values if any(a - v in rest for a in allowed.values))
    return part


def _factor(part: Domain, rest: Domain, allowed: Domain) -> Domain:
    """Values v of ``part`` for which some w of ``rest`` has v w in ``allowed``."""
    if rest.high == 0:
        if 0 not in allowed:
            raise _Empty
        return part
    high = allowed.high // rest.low if rest.low else part.high
    part = intersect(part, between(-(-allowed.low // rest.high), max(high, 0)))
    positive = allowed.low > 0
    if positive and allowed.multiple:
        part = intersect(part, between(1, allowed.multiple, 1, allowed.multiple))
    if positive and allowed.fixed:
        part = intersect(part, between(1, allowed.low, 1, allowed.low))
    if rest.fixed and allowed.divisor > 1:
        part = intersect(part, between(part.low, part.high, allowed.divisor // math.gcd(allowed.divisor, rest.low)))
    if part.values is not None:
        if rest.fixed:
            return among(v for v in part.values if v * rest.low in allowed)
        if allowed.values is not None and len(part.values) * len(allowed.values) <= LIMIT:
            return among(v for v in part.values if any(_quotient_in(a, v, rest) for a in allowed.values))
    return part


def _quotient_in(number: int, factor: int, domain: Domain) -> bool:
    if factor == 0:
        return number == 0
    return number % factor == 0 and number // factor in domain


def _root_down(number: int, power: int) -> int:
    """The largest r with r^power <= number."""
    root = round(number ** (1 / power)) if number < 2**52 else 1 << -(-number.bit_length() // power)
    while root**power > number:
        # Newton's step from above, at least one down
        root = min(root - 1, ((power - 1) * root + number // root ** (power - 1)) // power)
    while (root + 1) ** power <= number:
        root += 1
    return root


def _root_up(number: int, power: int) -> int:
    """The smallest r with r^power >= number."""
    root = _root_down(number, power)
    return root if root**power >= number else root + 1


@dataclasses.dataclass(frozen=True)
class Relation:
    """``left`` ``kind`` ``right``, where kind is "==", "<=" or "%" (right divides left)."""

    kind: str
    left: Term
    right: Term

    def holds(self, values: Mapping[str, int]) -> bool:
        a, b = _value(self.left, values), _value(self.right, values)
        if self.kind == "%":
            return b > 0 and a % b == 0
        return a == b if self.kind == "==" else a <= b

    def propagate(self, store: Store) -> None:
        a, b = _domain(self.left, store), _domain(self.right, store)
        if self.kind == "==":
            a = b = intersect(a, b)
        elif self.kind == "<=":
            a, b = intersect(a, between(0, b.high)), intersect(b, between(a.low, max(b.high, a.low)))
        else:
            a, b = _divided(a, b)
        _project(self.left, a, store)
        _project(self.right, b, store)


def _divided(a: Domain, b: Domain) -> tuple[Domain, Domain]:
    """Both domains of ``a % b == 0``."""
    b = intersect(b, between(1, b.high))
    if a.low > 0:
        b = intersect(b, between(1, min(a.high, b.high)))
        if a.fixed or a.multiple:
            whole = a.low if a.fixed else a.multiple
            b = intersect(b, between(1, whole, 1, whole))
    if b.divisor > 1:
        a = intersect(a, between(a.low, a.high, b.divisor))
    if a.values is not None and b.values is not None and len(a.values) * len(b.values) <= LIMIT:
        a, b = (
            among(v for v in a.values if any(v % d == 0 for d in b.values)),
            among(d for d in b.values if any(v % d == 0 for v in a.values)),
        )
    return a, b


@dataclasses.dataclass(frozen=True)
class Constraint:
    """One of ``alternatives`` holds."""

    alternatives: tuple[Relation, ...]

    def holds(self, values: Mapping[str, int]) -> bool:
        return any(relation.holds(values) for relation in self.alternatives)

    def propagate(self, store: Store) -> None:
        if len(self.alternatives) == 1:
            self.alternatives[0].propagate(store)
            return
        left = []
        for relation in self.alternatives:
            trial = dict(store)
            try:
                relation.propagate(trial)
            except _Empty:
                continue
            left.append(trial)
        if not left:
            raise _Empty
        for name in store:
            store[name] = intersect(store[name], functools.reduce(unite, (trial[name] for trial in left)))


_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_]\w*)|(==|<=|[%^*+|\[\],;]))")


class _Parser:
    """Recursive descent over the grammar of the module docstring; ``lists`` are the domains of lists, by hidden name."""

    def __init__(self, text: str):
        self.tokens, self.lists, self.place, at = [], {}, 0, 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError(
                    f"constraints: cannot read {text[at:].strip()[:20]!r} (there is no - / < > or bracket)"
                )
            self.tokens.append(match.group(match.lastindex))
            at = match.end()

    def next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.next()
        if wanted and token not in wanted:
            after = " ".join(self.tokens[max(0, self.place - 6) : self.place])
            raise ValueError(f"constraints: wanted {' or '.join(wanted)} after {after!r}, got {token or 'the end'!r}")
        self.place += 1
        return token

    def integer(self) -> int:
        token = self.take()
        if not token.isdigit():
            raise ValueError(f"constraints: wanted an integer, got {token or 'the end'!r}")
        return int(token)

    def constraints(self) -> Iterator[Constraint]:
        while self.next():
            relations = [self.relation(self.term())]
            while self.next() == "|":
                self.take()
                term = self.term()
                if self.next() in ("==", "<=", "%"):
                    relations.append(self.relation(term))
                elif relations[-1].kind == "%":
                    raise ValueError("constraints: after 'A % B == 0 |' there must be a whole relation")
                else:
                    relations.append(dataclasses.replace(relations[-1], right=term))
            self.take(";")
            yield Constraint(tuple(relations))

    def relation(self, left: Term) -> Relation:
        kind = self.take("==", "<=", "%")
        right = self.term()
        if kind == "%":
            self.take("==")
            self.take("0")
        return Relation(kind, left, right)

    def term(self) -> Term:
        return self.many("sum", "+", lambda: self.many("product", "*", self.power))

    def many(self, kind: str, sign: str, part: Callable[[], Term]) -> Term:
        parts = [part()]
        while self.next() == sign:
            self.take()
            parts.append(part())
        return parts[0] if len(parts) == 1 else (kind, tuple(parts))

    def power(self) -> Term:
        atom = self.atom()
        if self.next() != "^":
            return atom
        self.take()
        return ("power", atom, self.integer())

    def atom(self) -> Term:
        token = self.next()
        if token.isdigit():
            return ("const", self.integer())
        if token == "[":
            self.take()
            values = [self.integer()]
            while self.take(",", "]") == ",":
                values.append(self.integer())
            name = f"[{len(self.lists)}]"
            self.lists[name] = among(values)
            return ("var", name)
        if not token.isidentifier():
            raise ValueError(f"constraints: wanted an integer, a name or a list, got {token or 'the end'!r}")
        return ("var", self.take())


def _names(term: Term) -> Iterator[str]:
    kind, what = term[:2]
    if kind == "var":
        yield what
    elif kind == "power":
        yield from _names(what)
    elif kind != "const":
        for part in what:
            yield from _names(part)


class Problem:
    """Parsed constraints with domains and a search order; ``solve`` returns the first solution.

    Args:
      constraints: text, see the module docstring.
      domains: variable -> value, collection of values, or ``range`` of step 1; others are 1 .. 2^31 - 1.
      order: variable -> "largest" or "smallest", in the order of the search; the rest follows, largest first.

    Raises:
      ValueError: the text is not in the grammar, a domain is empty or negative, or ``order`` is not as said.
    """

    def __init__(
        self, constraints: str, domains: Mapping[str, Any] | None = None, order: Mapping[str, str] | None = None
    ):
        parser = _Parser(constraints)
        self.constraints = tuple(parser.constraints())
        used = [
            name
            for constraint in self.constraints
            for relation in constraint.alternatives
            for name in (*_names(relation.left), *_names(relation.right))
        ]
        domains, order = dict(domains or {}), dict(order or {})
        wrong = {k: v for k, v in order.items() if v not in ("largest", "smallest")}
        if wrong:
            raise ValueError(f"order wants 'largest' or 'smallest' for each variable, got {wrong}")
        shown = dict.fromkeys([*order, *domains, *(n for n in used if n not in parser.lists)])
        self.store: Store = {
            name: _given(name, domains[name]) if name in domains else between(1, LARGEST) for name in shown
        }
        self.shown = tuple(shown)
        self.store.update(parser.lists)
        self.order = tuple((name, order.get(name, "largest") == "largest") for name in self.store)

    def solve(self, excluded: Iterable[Mapping[str, int]] = ()) -> dict[str, int]:
        """The first assignment in search order that agrees with none of ``excluded`` (in all variables that one names).

        Raises:
          InfeasibleError: there is none.
        """
        excluded = [tuple(one.items()) for one in excluded]
        found = self._search(dict(self.store), excluded, set())
        if found is None:
            what = "; ".join(f"{n} in {_show(d)}" for n, d in self.store.items() if n in self.shown)
            raise InfeasibleError(f"no solution{f' beyond {len(excluded)} excluded' if excluded else ''} with {what}")
        return {name: found[name] for name in self.shown}

    def _search(self, store, excluded, failed):
        while True:
            try:
                self._propagate(store)
            except _Empty:
                return None
            key = tuple(store.values())
            if key in failed:
                return None
            unfixed = next(((name, largest) for name, largest in self.order if not store[name].fixed), None)
            if unfixed is None:
                values = {name: domain.low for name, domain in store.items()}
                fine = all(c.holds(values) for c in self.constraints)
                return values if fine and not any(all(values.get(n) == v for n, v in one) for one in excluded) else None
            name, largest = unfixed
            domain = store[name]
            value = domain.high if largest else domain.low
            if value in domain:  # an end of an interval of divisors need not be one itself
                found = self._search({**store, name: among([value])}, excluded, failed)
                if found is not None:
                    return found
            failed.add(key)
            try:
                store[name] = _without_end(domain, largest)
            except _Empty:
                return None

    def _propagate(self, store: Store) -> None:
        for _ in range(ROUNDS):
            before = dict(store)
            for constraint in self.constraints:
                constraint.propagate(store)
            if store == before:
                return


def _without_end(domain: Domain, largest: bool) -> Domain:
    if domain.values is not None:
        return among(domain.values[:-1] if largest else domain.values[1:])
    low, high = (domain.low, domain.high - 1) if largest else (domain.low + 1, domain.high)
    return between(low, high, domain.divisor, domain.multiple)


def _given(name: str, values: Any) -> Domain:
    if isinstance(values, int):
        values = (values,)
    if len(values) == 0 or min(values) < 0:
        raise ValueError(f"the domain of {name} must have values, none of them negative, got {values}")
    if isinstance(values, range) and values.step == 1:
        return between(values.start, values.stop - 1)
    if len(values) > LIMIT:
        raise ValueError(f"the domain of {name} has {len(values)} values; more than {LIMIT} must be a range of step 1")
    return among(values)


def _show(domain: Domain) -> str:
    if domain.fixed:
        return str(domain.low)
    if domain.values is not None and len(domain.values) <= 8:
        return str(list(domain.values))
    return f"{domain.low}..{domain.high}"


def solve(
    constraints: str,
    domains: Mapping[str, Any] | None = None,
    order: Mapping[str, str] | None = None,
    excluded: Iterable[Mapping[str, int]] = (),
) -> dict[str, int]:
    """``Problem(constraints, domains, order).solve(excluded)``, remembered between equal calls."""

    def frozen(values):
        return values if isinstance(values, int | range) else tuple(values)

    return dict(
        _solve(
            constraints,
            tuple((name, frozen(values)) for name, values in (domains or {}).items()),
            tuple((order or {}).items()),
            tuple(tuple(one.items()) for one in excluded),
        )
    )


@functools.lru_cache(1024)
def _solve(constraints, domains, order, excluded):
    problem = Problem(constraints, dict(domains), dict(order))
    return tuple(problem.solve([dict(one) for one in excluded]).items())


def retry(
    problem: Problem, attempt: Callable[[dict[str, int]], Any], failures: type | tuple[type, ...], trials: int = 25
) -> tuple[dict[str, int], Any]:
    """Solves, calls ``attempt(solution)``, and where that raises one of ``failures`` excludes the solution and goes on.

    Returns:
      (the solution, what ``attempt`` returned).

    Raises:
      InfeasibleError: no solution is left, or ``trials`` of them have failed.
    """
    excluded, last = [], None
    for _ in range(trials):
        try:
            solution = problem.solve(excluded)
        except InfeasibleError as error:
            raise error from last
        try:
            return solution, attempt(solution)
        except failures as error:
            last = error
            excluded.append(solution)
    raise InfeasibleError(f"{trials} solutions have failed, the last with: {last}") from last
