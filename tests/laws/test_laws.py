"""Every law over every variant of every registered mixer."""

import functools

import pytest

import zoo
from tests.laws.laws import CUT, LAWS, TIME, Subject, law_every_cut, law_one_cut, oracle_of, subjects

SUBJECTS = subjects()


@functools.lru_cache(maxsize=2)
def subject(label: str) -> Subject:
    name, options = SUBJECTS[label]
    cut = CUT if FIRST[name] == label else TIME // 2
    return Subject(zoo.create(name, **options), lambda *a, **beside: oracle_of(name)(*a, **beside), cut)


# Beyond a mixer's first variant `make test` asks what its options change: the oracle with its gradients, a cut, a reset,
# causality and the description. The rest hardly hangs on options and is for `make test-all`.
ONCE_PER_MIXER = ("batch", "precision", "errors")
# The dearest laws to compile, in `make test` for one mixer of each kind of state and form, in `make test-all` for every
# variant: pieces of one token and gradients across a cut; jit, vmap, remat, pmap and scans over layers; long sequences.
DEAR = ("compose", "long", "cut")
EXAMPLES = ("attention", "bidirectional", "gated_deltanet", "lstm", "mamba2", "s5")
FIRST = {name: label for label, (name, _) in reversed(SUBJECTS.items())}


def cases():
    """Subject-major order, and one xdist group per subject: its compiled functions are shared by all laws."""
    for label, (name, _) in SUBJECTS.items():
        first = FIRST[name] == label
        whole = first and name in EXAMPLES
        for law in LAWS if whole else ("one_cut", *LAWS):
            marks = [pytest.mark.xdist_group(label)]
            if (law in ONCE_PER_MIXER and not first) or (law in DEAR and not whole):
                marks.append(pytest.mark.slow)
            yield pytest.param(label, law, marks=marks, id=f"{label}-{law}")


@pytest.mark.parametrize(("label", "law"), cases())
def test_law(label, law, request):
    if law == "errors":
        request.getfixturevalue("as_users_see_it")
    law_one_cut(subject(label)) if law == "one_cut" else LAWS[law](subject(label))


@pytest.mark.slow
@pytest.mark.parametrize("label", SUBJECTS)
def test_every_cut(label):
    law_every_cut(subject(label))
