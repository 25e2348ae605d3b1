"""ConstrINT: every solution satisfies the constraints and is the first in search order; what has none raises."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.constrint import InfeasibleError, Problem, among, between, divisors, intersect, retry, solve

NAMES = "xyz"

atoms = st.one_of(st.sampled_from(NAMES), st.integers(0, 12).map(str))
powers = st.tuples(atoms, st.sampled_from(["", "", "", "^2", "^3", "^0"])).map("".join)
products = st.lists(powers, min_size=1, max_size=3).map(" * ".join)
terms = st.lists(products, min_size=1, max_size=2).map(" + ".join)
lists = st.lists(st.integers(0, 30), min_size=1, max_size=4)
relations = st.one_of(
    st.tuples(terms, st.sampled_from(["==", "<="]), terms).map(" ".join),
    st.tuples(terms, terms).map(lambda t: f"{t[0]} % {t[1]} == 0"),
    st.tuples(st.sampled_from(NAMES), lists).map(lambda t: f"{t[0]} == {t[1]}"),
)
constraints = st.lists(relations, min_size=1, max_size=2).map(" | ".join)
domains = st.one_of(
    st.lists(st.integers(0, 30), min_size=1, max_size=9),
    st.tuples(st.integers(0, 20), st.integers(1, 10)).map(lambda t: range(t[0], t[0] + t[1])),
)


def holds(text, values):
    """Python's own arithmetic on the text; division by zero does not hold."""
    for constraint in text.split(";")[:-1]:
        results = []
        for relation in constraint.split("|"):
            relation = relation.strip().replace("^", "**")
            listed = re.fullmatch(r"(\w+) == (\[.*\])", relation)
            if listed:
                relation = f"{listed[1]} in {listed[2]}"
            left, divides, right = relation.partition("%")
            if divides:
                relation = f"({left}) % ({right.removesuffix('== 0')}) == 0"
            try:
                results.append(eval(relation, {}, values))
            except ZeroDivisionError:
                results.append(False)
        if not any(results):
            return False
    return True


@given(
    st.lists(constraints, min_size=1, max_size=4),
    st.tuples(domains, domains, domains),
    st.tuples(st.permutations(NAMES), st.lists(st.sampled_from(["largest", "smallest"]), min_size=3, max_size=3)),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_solution_is_the_first_that_brute_force_finds(lines, ranges, order):
    text = " ".join(f"{line};" for line in lines)
    order = dict(zip(*order))
    given_domains = dict(zip(NAMES, ranges))
    in_order = [sorted(set(given_domains[n]), reverse=way == "largest") for n, way in order.items()]
    everything = (dict(zip(order, values)) for values in itertools.product(*in_order))
    solutions = [values for values in everything if holds(text, values)]
    problem = Problem(text, given_domains, order)
    for k in (0, 1, 3):  # the first, and what is left when the first k are excluded
        if len(solutions) > k:
            assert problem.solve(solutions[:k]) == solutions[k]
        else:
            with pytest.raises(InfeasibleError):
                problem.solve(solutions)
            break


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_intersection_of_intervals_of_multiples_is_exact(high_a, high_b, divisor_a, divisor_b):
    a, b = between(0, 3 * high_a, divisor_a), between(0, 3 * high_b, divisor_b)
    both = intersect(a, b)
    for value in range(0, 3 * min(high_a, high_b) + 2):
        assert (value in both) == (value in a and value in b)


def test_large_domains_are_solved_by_their_divisors_and_bounds():
    # 2^31 values each: only propagation of divisors and bounds can find these
    assert solve("x * y == 1000003 * 999983; x <= y;", {}, {"x": "largest"}) == {"x": 999983, "y": 1000003}
    assert solve("x^3 == 1331000000;") == {"x": 1100}
    assert solve("6469693230 % x == 0; x % 30 == 0; x <= 1000;", {}, {"x": "largest"})["x"] == 870
    assert divisors(36) == (1, 2, 3, 4, 6, 9, 12, 18, 36)
    with pytest.raises(InfeasibleError, match="no solution"):
        solve("x * 2 == y; y * 2 + 1 == 2 * z;", {"z": range(1, 50)})


def test_alternatives_without_a_relation_share_the_left_side():
    assert solve("x == 4 | 9 | 25; x <= 20;") == {"x": 9}
    assert solve("x <= 3 | y; y == 7;", {"x": range(1, 100)}) == {"x": 7, "y": 7}


def test_tiles_of_a_kernel():
    text = """
        padded % rows == 0; rows % 8 == 0; steps <= 64;
        2 * gates * dim^2 + 4 * rows * dim * steps * gates <= memory;
    """
    known = {"padded": 64, "gates": 4, "dim": 128, "memory": 2**20}
    got = solve(text, known, {"rows": "largest", "steps": "largest"})
    assert (got["rows"], got["steps"]) == (64, 7)  # 131072 + 917504 bytes, the eighth step does not fit
    assert solve(text, known, {"rows": "largest"}, [{"rows": 64}])["rows"] == 32


@pytest.mark.parametrize(
    ("text", "domain", "order", "message"),
    [
        ("x - 1 == 2;", {}, {}, "cannot read '- 1"),
        ("x / 2 == 2;", {}, {}, "cannot read '/ 2"),
        ("x < 2;", {}, {}, "cannot read '< 2"),
        ("x == 2", {}, {}, "wanted ;"),
        ("x % 2 == 1;", {}, {}, "wanted 0"),
        ("x^y == 1;", {}, {}, "wanted an integer, got 'y'"),
        ("x == [1, 2;", {}, {}, "wanted , or ]"),
        ("x == ;", {}, {}, "wanted an integer, a name or a list"),
        ("x % 2 == 0 | 3;", {}, {}, "whole relation"),
        ("x == 1;", {"x": []}, {}, "domain of x"),
        ("x == 1;", {"x": [-1, 1]}, {}, "negative"),
        ("x == 1;", {"x": list(range(0, 9999, 3))}, {}, "range of step 1"),
        ("x == 1;", {}, {"x": "random"}, "'largest' or 'smallest'"),
    ],
)
def test_bad_input_is_told_clearly(text, domain, order, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Problem(text, domain, order)


def test_failing_solutions_are_excluded_until_one_works_or_the_trials_run_out():
    problem = Problem("x <= 9;", {}, {"x": "largest"})

    def attempt(solution):
        if solution["x"] > 6:
            raise MemoryError("too large")
        return 10 * solution["x"]

    assert retry(problem, attempt, MemoryError) == ({"x": 6}, 60)
    with pytest.raises(InfeasibleError, match="2 solutions have failed, the last with: too large"):
        retry(problem, attempt, MemoryError, trials=2)
    with pytest.raises(InfeasibleError, match="no solution beyond 3 excluded"):
        retry(Problem("7 <= x; x <= 9;"), attempt, MemoryError)
    with pytest.raises(MemoryError):
        retry(problem, attempt, KeyError)


def test_a_domain_of_many_values_becomes_the_interval_around_them():
    domain = among(range(0, 30000, 6))
    assert domain.values is None and (domain.low, domain.high, domain.divisor) == (0, 29994, 6)
    assert 12 in domain and 13 not in domain
