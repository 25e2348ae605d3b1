"""Subject-verb agreement: both file layouts, verb forms, splits, and the score by attractors."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tasks import Agreement
from zoo.tasks.agreement import (
    NOUNS,
    UNKNOWN,
    accuracy_by_attractors,
    generate,
    other_form,
    prefers_right_form,
    read_dependencies,
)

LINZEN = (
    "sentence\torig_sentence\tverb_pos\tverb_index\tn_intervening\tn_diff_intervening\n"
    "the keys to the old cabinet are here\tx\tVBP\t7\t1\t1\n"
    "she carries it\tx\tVBZ\t2\t0\t0\n"
)
PAIRS = (
    "pattern\tcorrect_number\tform\tclass\tprefix\tn_attr\tsent\n"
    'p\tsing\tis\tcorrect\tThe idea of "" the roads\t1\t"The "" x"\n'
    'p\tsing\tare\twrong\tThe idea of "" the roads\t1\t"The "" x"\n'
    "p\tplur\tsees\twrong\tcats\t0\tcats\n"
    "p\tplur\tsee\tcorrect\tcats\t0\tcats\n"
)


def test_both_layouts_are_read(tmp_path):
    with gzip.open(tmp_path / "linzen.tsv.gz", "wt") as file:
        file.write(LINZEN)
    first, second = read_dependencies(tmp_path / "linzen.tsv.gz")
    assert first.prefix == ("the", "keys", "to", "the", "old", "cabinet")
    assert (first.right, first.wrong, first.plural, first.attractors) == ("are", "is", True, 1)
    assert (second.prefix, second.right, second.wrong, second.plural) == (("she",), "carries", "carry", False)
    (tmp_path / "pairs.tab").write_text(PAIRS)
    first, second = read_dependencies(tmp_path / "pairs.tab")
    assert (first.right, first.wrong, first.plural, first.attractors) == ("is", "are", False, 1)
    assert (second.right, second.wrong, second.plural) == ("see", "sees", True)


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match=r"other\.tsv needs tab-separated columns sentence, .* has a, b"):
        read_dependencies(tmp_path / "other.tsv")
    (tmp_path / "bad.tsv").write_text(LINZEN.replace("VBZ\t2", "VBZ\t9"))
    with pytest.raises(ValueError, match=r"bad\.tsv, line 3: verb_pos='VBZ', verb_index='9'"):
        read_dependencies(tmp_path / "bad.tsv")
    (tmp_path / "bad.tab").write_text(PAIRS.replace("wrong\tcats", "wrong\tdogs"))
    with pytest.raises(ValueError, match="lines 4 and 5 are not the two forms"):
        read_dependencies(tmp_path / "bad.tab")
    (tmp_path / "odd.tab").write_text("\n".join(PAIRS.splitlines()[:4]))
    with pytest.raises(ValueError, match="lines 4 and 5 are not the two forms"):
        read_dependencies(tmp_path / "odd.tab")


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("is", "are"), ("has", "have"), ("was", "were"), ("does", "do"), ("goes", "go"), ("sees", "see"), ("dies", "die"),
     ("carries", "carry"), ("plays", "play"), ("tosses", "toss"), ("loses", "lose"), ("fixes", "fix"), ("adds", "add"),
     ("reaches", "reach"), ("pushes", "push"), ("uses", "use"), ("says", "say"), ("focuses", "focus")],
)  # fmt: skip
def test_verb_forms(singular, plural):
    assert other_form(singular) == plural and other_form(plural) == singular


def test_generated_sentences_agree_with_their_first_noun():
    sentences = generate(200)
    assert {s.attractors for s in sentences} == set(range(6)) and {s.plural for s in sentences} == {True, False}
    for s in sentences:
        nouns = [w for w in s.prefix if w.removesuffix("s") in NOUNS]
        assert [n.endswith("s") for n in nouns] == [s.plural] + [not s.plural] * s.attractors
        singular = s.wrong if s.plural else s.right
        assert singular in ("is", "has") or singular.endswith("s")
        assert other_form(s.right) == s.wrong


def test_splits_share_a_vocabulary_and_no_sentence():
    train, test = (Agreement(split=s, generated=400, vocab_size=30, max_length=9) for s in ("train", "test"))
    assert train.vocabulary == test.vocabulary and len(train.vocabulary) == 28
    a, b = train.data(), test.data()
    assert len(a.lengths) + len(b.lengths) == 400 and 10 < len(a.lengths) < 100
    words = [{" ".join(d.prefix) for d in task._splits[task.split]} for task in (train, test)]
    assert not words[0] & words[1]
    assert max(a.inputs.max(), b.inputs.max()) < 30 and (b.inputs == UNKNOWN).any()
    assert b.lengths.max() == 9  # longer prefixes keep their last words
    batch = jax.jit(train.batch, static_argnums=1)(jax.random.key(0), 64, a)
    for row in range(64):
        n = int(batch.lengths[row])
        assert batch.targets[row, n - 1] == batch.extra["right"][row] and batch.mask[row].sum() == n
        np.testing.assert_array_equal(batch.targets[row, : n - 1], batch.inputs[row, 1:n])


def test_score_compares_the_two_forms_after_the_last_word():
    batch = Agreement(generated=300).data()
    rows, time = batch.inputs.shape
    logits = np.zeros((rows, time, 200), np.float32)
    at = batch.lengths - 1
    logits[np.arange(rows), at, batch.extra["right"]] = np.where(batch.extra["attractors"] < 3, 1, -1)
    correct = prefers_right_form(jnp.asarray(logits), jax.tree.map(jnp.asarray, batch))
    scores = accuracy_by_attractors(np.asarray(correct), batch.extra["attractors"])
    assert [scores[f"accuracy_{k}"] for k in range(6)] == [1, 1, 1, 0, 0, 0]
    assert scores["accuracy"] == pytest.approx(float((batch.extra["attractors"] < 3).mean()))
