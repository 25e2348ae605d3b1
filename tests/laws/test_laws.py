"""Every law over every variant of every registered mixer."""

import functools

import pytest

import zoo
from tests.laws.laws import LAWS, Subject, law_every_cut, oracle_of, subjects

SUBJECTS = subjects()


@functools.lru_cache(maxsize=2)
def subject(label: str) -> Subject:
    name, options = SUBJECTS[label]
    return Subject(zoo.create(name, **options), lambda *a: oracle_of(name)(*a))


# Subject-major order, and one xdist group per subject: its compiled functions are shared by all laws.
@pytest.mark.parametrize(
    ("label", "law"),
    [pytest.param(s, law, marks=pytest.mark.xdist_group(s), id=f"{s}-{law}") for s in SUBJECTS for law in LAWS],
)
def test_law(label, law, request):
    if law == "errors":
        request.getfixturevalue("as_users_see_it")
    LAWS[law](subject(label))


@pytest.mark.slow
@pytest.mark.parametrize("label", SUBJECTS)
def test_every_cut(label):
    law_every_cut(subject(label))
