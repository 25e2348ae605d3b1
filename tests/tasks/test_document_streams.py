"""Streams over long documents: the short ones are gone, segments go on where the last one ended."""

import numpy as np
import pytest

from zoo.tasks.document_streams import DocumentStreams, long_documents

END = 0


@pytest.fixture
def corpus(tmp_path):
    """(path, its long documents one behind another): every token of a document says which it is."""
    lengths = [3, 9, 2, 8, 12, 1, 10] * 4
    documents = [[n + 1] * (length - 1) + [END] for n, length in enumerate(lengths)]
    path = tmp_path / "tokens.bin"
    np.array([token for document in documents for token in document] + [77] * 60, np.uint16).tofile(path)
    return str(path), np.array([token for document in documents if len(document) >= 8 for token in document])


def test_short_documents_are_dropped_and_the_last_needs_no_end():
    tokens = np.array([5, 5, END, 6, END, 7, 7, 7])
    assert long_documents(tokens, END, 3).tolist() == [[0, 3], [5, 8]]
    assert long_documents(tokens, END, 1).tolist() == [[0, 3], [3, 5], [5, 8]]
    assert long_documents(tokens, END, 4).tolist() == []


def test_the_segments_of_a_stream_are_one_piece_of_the_long_documents(corpus):
    path, kept = corpus
    task = DocumentStreams(path, time=5, segments=4, min_length=8, end_of_text=END, held_out=60)
    batches = [task.read(3, step, range(2), 2) for step in range(8)]
    for stream in (batches[:4], batches[4:]):
        for row in range(2):
            inputs = np.concatenate([batch.inputs[row] for batch in stream])
            targets = np.concatenate([batch.targets[row] for batch in stream])
            np.testing.assert_array_equal(inputs[1:], targets[:-1])
            whole = [*inputs, targets[-1]]
            assert any(np.array_equal(whole, kept[p : p + 21]) for p in range(len(kept)))
        assert [batch.extra.any(axis=0).tolist() for batch in stream] == [[True] + [False] * 4] + [[False] * 5] * 3
    assert not np.array_equal(batches[0].inputs, batches[4].inputs)
    np.testing.assert_array_equal(task.read(3, 6, range(1, 2), 2).inputs[0], batches[6].inputs[1])


def test_a_document_may_reset_the_state(corpus):
    path, kept = corpus
    task = DocumentStreams(path, 5, 4, 8, END, held_out=60, reset_documents=True)
    batch = task.windows(np.array([5, 8]), first=False)
    begins = np.concatenate([[True], kept[:-1] == END])
    np.testing.assert_array_equal(batch.extra, [begins[5:10], begins[8:13]])
    assert batch.extra.any()


def test_too_little_text_says_what_is_missing(corpus):
    path, _ = corpus
    with pytest.raises(ValueError, match="too few for streams of 12 segments of 50"):
        DocumentStreams(path, 50, 12, 8, END, held_out=60).read(0, 0, range(1), 1)
    with pytest.raises(FileNotFoundError, match="binary file of uint16"):
        DocumentStreams("").read(0, 0, range(1), 1)
    with pytest.raises(ValueError, match="segments must be a positive integer"):
        DocumentStreams(path, segments=0)
