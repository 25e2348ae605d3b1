"""Tasks and metrics of the survey: every example is what its docstring says, files give what they hold."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tasks import (
    Adding,
    CopyMemory,
    DelayedRecall,
    FeatureCaptions,
    FutureContext,
    LabelledFrames,
    NoisyStrokes,
    Parity,
    Reversal,
    ShapeCaptions,
    TemporalOrder,
    TextStreams,
    bleu,
    edit_distance,
    error_rate,
    perplexity,
    word_accuracy,
)

ROWS = 200


def batch(task, rows=ROWS):
    return jax.tree.map(np.asarray, jax.jit(task.batch, static_argnums=1)(jax.random.key(5), rows, task.data()))


def test_delayed_recall_asks_for_the_first_symbol():
    b = batch(DelayedRecall(symbols=6, distractors=4, time=9))
    assert b.inputs.shape == (ROWS, 9) and np.array_equal(b.inputs[:, 0], b.targets)
    assert set(b.targets) == set(range(6)) and set(b.inputs[:, 1:].ravel()) == set(range(6, 10))


def test_adding_marks_one_number_in_each_half():
    b = batch(Adding(time=11))
    marks = b.inputs[..., 1]
    assert np.all(marks[:, :5].sum(1) == 1) and np.all(marks[:, 5:].sum(1) == 1)
    np.testing.assert_allclose(b.targets[:, 0], (b.inputs[..., 0] * marks).sum(1), rtol=1e-6)
    assert abs(np.mean((b.targets - 1) ** 2) - 1 / 6) < 0.05


def test_temporal_order_reads_the_relevant_symbols_as_a_number():
    task = TemporalOrder(relevant=3, distractors=2, time=12)
    b = batch(task)
    for row, target in zip(b.inputs, b.targets):
        relevant = row[row < 2]
        assert len(relevant) == 3 and int("".join(map(str, relevant)), 2) == target
    assert set(b.targets) == set(range(task.num_classes))


def test_copy_memory_and_parity():
    task = CopyMemory(symbols=3, length=4, delay=5)
    b = batch(task)
    assert np.array_equal(b.inputs[:, :4], b.targets[:, -4:]) and np.all(b.inputs[:, 9] == 1)
    assert np.all(b.mask.sum(1) == 4) and np.all(b.targets[~b.mask] == 0) and np.all(b.inputs[:, 10:] == 0)
    b = batch(Parity(time=6))
    assert np.array_equal(b.targets, np.cumsum(b.inputs, 1) % 2)
    b = batch(Parity(time=6, min_time=4))
    assert set(b.mask.sum(1).tolist()) == {4, 5, 6} and np.all(b.mask[:, :4]) and np.all(b.inputs[~b.mask] == 0)
    assert np.array_equal(b.targets, np.cumsum(b.inputs, 1) % 2)
    with pytest.raises(ValueError, match="min_time=7"):
        Parity(time=6, min_time=7)


def test_future_context_is_the_xor_of_two_bits_and_masks_the_edges():
    b = batch(FutureContext(time=9, ahead=2, behind=1))
    for t in range(1, 7):
        assert np.array_equal(b.targets[:, t], b.inputs[:, t + 2] ^ b.inputs[:, t - 1])
    assert b.mask[0].tolist() == [False] + [True] * 6 + [False] * 2


def test_reversal_ends_and_pads():
    b = batch(Reversal(symbols=5, min_length=2, max_length=6))
    for source, target, mask, length in zip(b.inputs, b.targets, b.mask, b.lengths):
        want = [*source[:length][::-1], 1] + [0] * (6 - length)
        assert target.tolist() == want and mask.sum() == length + 1 and np.all(source[length:] == 0)
        assert np.all(source[:length] >= 2)


def test_noisy_strokes_show_every_symbol_for_its_frames():
    task = NoisyStrokes(symbols=4, noise=0.0)
    b = batch(task)
    assert b.inputs.shape == (ROWS, task.time, 2)
    for pen, labels, mask, length in zip(b.inputs, b.targets, b.mask, b.lengths):
        count = mask.sum()
        assert np.all(labels[:count] > 0) and np.all(labels[count:] == 0) and 2 <= count <= 4
        assert count * task.min_frames <= length <= count * task.max_frames
        assert np.allclose((pen[:length] ** 2).sum(-1), 1, atol=1e-5) and np.all(pen[length:] == 0)


def test_shape_captions_tell_pictures_apart():
    task = ShapeCaptions(noise=0.0)
    b = batch(task)
    assert len(set(map(tuple, b.targets))) == 24 and np.all(b.targets[:, -1] == 1)
    seen = collections.defaultdict(set)
    for image, caption in zip(b.inputs, b.targets):
        seen[image.tobytes()].add(tuple(caption))
    assert all(len(captions) == 1 for captions in seen.values()), "one picture has two captions"
    half = task.side // 2
    for image, caption in zip(b.inputs[..., 0], b.targets):
        words = [task.words[i] for i in caption]
        top, left = image[:half].sum() > image[half:].sum(), image[:, :half].sum() > image[:, half:].sum()
        assert (words[2] == "top") == top and (words[3] == "left") == left
        assert (words[0] == "large") == ((image > 0.5).any(0).sum() > 3), "size"


def test_tasks_refuse_impossible_sizes(as_users_see_it):
    for make in (
        lambda: DelayedRecall(time=0), lambda: Adding(time=1), lambda: TemporalOrder(relevant=3, time=2),
        lambda: FutureContext(time=3), lambda: Reversal(min_length=9), lambda: NoisyStrokes(min_frames=1),
        lambda: ShapeCaptions(side=3), lambda: TextStreams(unit="wrod"), lambda: CopyMemory(delay=-1),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            make()


def test_text_streams_go_on_where_they_ended_and_say_where_they_begin(tmp_path):
    text = "the cat sat\non the mat\n" * 40
    (tmp_path / "a.txt").write_text(text)
    task = TextStreams(path=str(tmp_path / "a.txt"), time=5, max_words=6)
    ids, words = task.tokens()
    assert words == ("<unk>", "<eos>", "the", "cat", "mat", "on") and task.vocab_size == 6
    assert [words[i] for i in ids[:8]] == ["the", "cat", "<unk>", "<eos>", "on", "the", "mat", "<eos>"]
    steps = task.segments(3)
    read = [task.read(0, n, range(3), 3) for n in range(steps + 1)]
    length = (len(ids) - 1) // 3
    for row in range(3):
        stream = np.concatenate([b.inputs[row] for b in read[:steps]])
        assert np.array_equal(stream, ids[row * length : row * length + steps * 5])
        targets = np.concatenate([b.targets[row] for b in read[:steps]])
        assert np.array_equal(targets[:-1], stream[1:])
    assert [b.extra.any() for b in read] == [True] + [False] * (steps - 1) + [True]
    part = task.read(0, 2, range(1, 3), 3)
    assert np.array_equal(part.inputs, read[2].inputs[1:]), "a device's own rows"

    sizes = {
        s: len(TextStreams(path=task.path, split=s, unit="byte").tokens().ids) for s in ("train", "validation", "test")
    }
    assert sum(sizes.values()) == len(text) and abs(sizes["train"] / len(text) - 0.9) < 0.01
    with pytest.raises(ValueError, match="too few"):
        task.segments(1000)


def test_text_streams_read_a_corpus_folder_with_the_training_vocabulary(tmp_path, as_users_see_it):
    for split, text in (("train", "a b a\n"), ("valid", "b c\n"), ("test", "a a a a\n")):
        (tmp_path / f"ptb.{split}.txt").write_text(text)
    ids, words = TextStreams(path=str(tmp_path), split="validation").tokens()
    assert words == ("<unk>", "a", "<eos>", "b") and ids.tolist() == [3, 0, 2]
    with pytest.raises(FileNotFoundError, match=r"ptb\.train\.txt"):
        TextStreams(path=str(tmp_path / "nothing")).tokens()


def test_caption_and_frame_files(tmp_path, as_users_see_it):
    np.save(tmp_path / "features.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    (tmp_path / "captions.txt").write_text("0\ta dog runs\n1\ta cat\n0\ta dog\n")
    task = FeatureCaptions(path=str(tmp_path), time=4, min_count=2)
    b = batch(task, 20)
    assert task.vocab_size == 5  # padding, end, unknown, a, dog
    for features, tokens, mask in zip(b.inputs, b.targets, b.mask):
        assert tokens.tolist() in ([3, 4, 2, 1], [3, 2, 1, 0], [3, 4, 1, 0]) and np.array_equal(mask, tokens != 0)
        assert (features[0] == 3) == (tokens.tolist() == [3, 2, 1, 0])
    with pytest.raises(FileNotFoundError, match=r"features\.npy"):
        FeatureCaptions(path=str(tmp_path / "nothing")).data()
    (tmp_path / "captions.txt").write_text("7\ta dog\n")
    with pytest.raises(ValueError, match="line 1"):
        FeatureCaptions(path=str(tmp_path), time=5).data()

    arrays = {"features": np.arange(10.0).reshape(5, 2), "lengths": np.array([2, 3]), "labels": np.array([1, 2, 1]),
              "label_lengths": np.array([1, 2])}  # fmt: skip
    np.savez(tmp_path / "frames.npz", **arrays)
    frames = LabelledFrames(path=str(tmp_path / "frames.npz"))
    b = batch(frames, 10)
    for features, labels, mask, length in zip(*b[:4]):
        first = length == 2
        assert labels.tolist() == ([1, 0] if first else [2, 1]) and mask.sum() == (1 if first else 2)
        assert features[0, 0] == (0 if first else 4) and (not first or np.all(features[2] == 0))
    assert frames.symbols == 2
    np.savez(tmp_path / "wrong.npz", features=arrays["features"])
    with pytest.raises(ValueError, match="lacks lengths, labels, label_lengths"):
        LabelledFrames(path=str(tmp_path / "wrong.npz")).data()
    with pytest.raises(FileNotFoundError, match="IAM-OnDB"):
        LabelledFrames().data()


def test_bleu_of_hand_computed_cases(as_users_see_it):
    reference = ["the", "cat", "is", "on", "the", "mat"]
    assert bleu([reference], [[reference]]) == pytest.approx(1)
    # Clipping (the example of Papineni et al.): of seven "the" only two count.
    assert bleu([["the"] * 7], [[reference]], max_order=1) == pytest.approx(2 / 7)
    # ... and with several references the largest count in any one of them, not their sum.
    assert bleu([["the"] * 3], [[["the", "cat"], ["the", "dog"]]], max_order=1) == pytest.approx(1 / 3)
    # 5 of 6 unigrams, 3 of 5 bigrams, 1 of 4 trigrams, 0 of 3 four-grams.
    hypothesis = ["the", "cat", "sat", "on", "the", "mat"]
    assert bleu([hypothesis], [[reference]]) == 0
    assert bleu([hypothesis], [[reference]], max_order=3) == pytest.approx((5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))
    assert bleu([hypothesis], [[reference]], smoothing="exponential") == pytest.approx(
        (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    )
    assert bleu([hypothesis], [[reference]], smoothing="add_one") == pytest.approx(
        (5 / 6 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25
    )
    # Brevity: three of six words, all right; the closest reference length counts.
    assert bleu([reference[:3]], [[reference]], max_order=2) == pytest.approx(np.exp(1 - 6 / 3))
    assert bleu([reference[:3]], [[reference, reference[:4]]], max_order=2) == pytest.approx(np.exp(1 - 4 / 3))
    # Over the corpus counts are added before dividing, not averaged.
    assert bleu([["a"], ["b", "c", "d"]], [[["a"]], [["b", "x", "y"]]], max_order=1) == pytest.approx(2 / 4)
    with pytest.raises(ValueError, match="as many references"):
        bleu([], [])


def test_edit_distance_and_rates_of_hand_computed_cases(as_users_see_it):
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3 and edit_distance("abc", "") == 3
    assert edit_distance("flaw", "lawn") == 2 and edit_distance("same", "same") == 0

    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    generator = np.random.default_rng(0)
    for _ in range(10):
        a, b = (generator.integers(0, 3, generator.integers(0, 6)).tolist() for _ in range(2))
        assert edit_distance(a, b) == slow(a, b)
    assert error_rate(["ab", "c"], ["ad", "ce"]) == pytest.approx(2 / 4)
    assert word_accuracy([["a", "x"]], [["a", "b"]]) == pytest.approx(0.5)
    assert perplexity(np.log(8.0) * 5, 5) == pytest.approx(8) and perplexity(1e9) == np.inf
    with pytest.raises(ValueError):
        error_rate([""], [""])


def test_rows_do_not_depend_on_their_neighbours():
    task = NoisyStrokes()
    keys = jax.random.split(jax.random.key(0), 4)
    rows = jax.jit(task.rows)
    whole, part = rows(keys), rows(keys[2:])
    assert all(np.array_equal(a[2:], b) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part)))
    assert jnp.issubdtype(whole.targets.dtype, jnp.integer)
