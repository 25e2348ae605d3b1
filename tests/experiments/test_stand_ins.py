"""Files that stand in for public ones: their loaders read them, in the shapes of the real data."""

import jax
import numpy as np
import pytest

from experiments import stand_ins
from zoo.tasks import (
    DocumentRetrieval,
    ListOpsFiles,
    MovieReviews,
    Pathfinder,
    SequentialCifar,
    SpeechCommands,
    TextStreams,
)
from zoo.tasks.listops import expression_text
from zoo.tasks.long_texts import enwik8_windows, wikitext103_streams
from zoo.tasks.speech_commands import TEN_WORDS


@pytest.mark.parametrize(
    ("write", "make", "shape"),
    [
        (stand_ins.listops, ListOpsFiles, (3, 2048)),
        (stand_ins.movie_reviews, MovieReviews, (3, 4096)),
        (stand_ins.document_pairs, DocumentRetrieval, (3, 2, 4000)),
        (stand_ins.cifar_images, SequentialCifar, (3, 1024, 1)),
        (stand_ins.pathfinder_images, Pathfinder, (3, 1024, 1)),
        (lambda f: stand_ins.pathfinder_images(f, 128), lambda *a: Pathfinder(*a, resolution=128), (3, 16384, 1)),
        (lambda f: stand_ins.spoken_words(f, TEN_WORDS), lambda *a: SpeechCommands(*a, words=TEN_WORDS), (3, 16000, 1)),
        (stand_ins.hundred_million_bytes, enwik8_windows, (3, 2048)),
        (stand_ins.wikitext, wikitext103_streams, (3, 512)),
    ],
)
def test_loaders_read_the_files_that_stand_in(write, make, shape, tmp_path):
    path = write(tmp_path)
    for split in ("train", "test"):
        task = make(path, split)
        batch = task.read(0, 0, range(3), 3)
        assert batch.inputs.shape == shape and len(jax.tree.leaves(batch)) >= 2
        assert isinstance(batch.inputs, np.ndarray) and batch.inputs.dtype in (np.int32, np.float32)
        if isinstance(task, TextStreams):
            assert task.vocab_size == 267_735
    if isinstance(task, ListOpsFiles):
        assert expression_text(task.rows_at(np.array([23])).inputs[0]) == "[MAX 3 [SM 2 1 ] ]"
