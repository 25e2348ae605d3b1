"""Questions whose answer stands in a document: FDA, SWDE, Natural Questions, SQuAD, TriviaQA, DROP; said once or twice.

Arora et al. (2024), Just Read Twice, arXiv 2407.05483: a recurrent model that has read the question and the document may
look for the right thing when the document comes again (JRT-Prompt).

The files are the rows of the data sets hazyresearch/based-fda, based-swde-v2, based-squad, based_nq_512 (_1024, _2048),
based_triviaqa and based_drop of the Hugging Face hub, saved as JSON lines, or as one JSON list. Fields that are read:

    fda, swde                  text, key, value
    squad                      context, question, text (the context and the sentence to complete), value
    nq, triviaqa, drop         context, question, answers; orig_question, where there is one, is said first
"""

import collections
import dataclasses
import json
import pathlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.checks import check_choice, check_positive

DATASETS = ("fda", "swde", "nq", "squad", "triviaqa", "drop")
MAX_NEW_TOKENS = 48  # of an answer, which also ends at the first line break
_FIELDS = {
    "fda": ("text", "key", "value"),
    "swde": ("text", "key", "value"),
    "squad": ("context", "question", "text", "value"),
    **dict.fromkeys(("nq", "triviaqa", "drop"), ("context", "question", "answers")),
}


@dataclasses.dataclass(frozen=True)
class RecallQuestion:
    """One question: ``context`` (without the question), ``question`` as the prompt ends, ``intro`` as it begins when the
    question is said first, and the ``answers`` of which one must be in what is generated."""

    context: str
    question: str
    intro: str
    answers: tuple[str, ...]


def load_recall(path: str, dataset: str) -> list[RecallQuestion]:
    """Reads the questions of one file.

    Args:
      path: ``.jsonl`` (one object a line) or ``.json`` (a list of objects).
      dataset: one of ``DATASETS``.

    Raises:
      FileNotFoundError: there is no such file; the message says what is wanted.
      ValueError: another ending, or a row without a field that is needed.
    """
    check_choice("dataset", dataset, DATASETS)
    file = pathlib.Path(path)
    if not path or not file.is_file():
        raise FileNotFoundError(
            f"{path!r}: give the rows of {dataset} as .jsonl or .json (see zoo.tasks.document_recall)"
        )
    check_choice("the ending of the file", file.suffix, (".jsonl", ".json"))
    text = file.read_text(encoding="utf-8")
    rows = (
        [json.loads(line) for line in text.splitlines() if line.strip()]
        if file.suffix == ".jsonl"
        else json.loads(text)
    )
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a list of at least one row, got {type(rows).__name__}")
    return [recall_question(row, dataset) for row in rows]


def recall_question(row: Mapping[str, Any], dataset: str) -> RecallQuestion:
    """A row of a data set as a question; ValueError for missing fields."""
    check_choice("dataset", dataset, DATASETS)
    missing = [name for name in _FIELDS[dataset] if name not in row]
    if missing:
        raise ValueError(f"a row of {dataset} needs the fields {', '.join(_FIELDS[dataset])}; {missing} are missing")
    if dataset in ("fda", "swde"):
        # The key's first letter is a capital in the question; some texts end with a copy of it.
        key = row["key"][:1].upper() + row["key"][1:]
        text = row["text"].split("Summary of information above...")[0] if dataset == "swde" else row["text"]
        return _question(text, f"{key}:", f"Information about {key}.", [row["value"]])
    if dataset == "squad":
        context = row["context"].split("Question:")[0].strip()
        text = row["text"].strip()
        cloze = text[len(context) :] if text.startswith(context) else text
        return _question(context, cloze.strip(), row["question"].strip(), [row["value"]])
    context = row["context"]
    if dataset == "triviaqa":
        context = re.sub(r"\[(PAR|DOC|TLE)\]", "", context)
    intro = row.get("orig_question", row["question"]).strip().strip(":")
    answers = [row["answers"]] if isinstance(row["answers"], str) else row["answers"]
    return _question(context, row["question"].strip(), intro, answers)


def _question(context: str, question: str, intro: str, answers: Sequence[str]) -> RecallQuestion:
    """Strips copies of the question from the end of the context, and the full stop, which the prompts set again."""
    context = context.strip()
    while question and context.lower().endswith(question.lower()):
        context = context[: -len(question)].rstrip()
    if not answers:
        raise ValueError(f"a question needs an answer: {question!r}")
    return RecallQuestion(context.rstrip(".").strip(), question, intro, tuple(answers))


def recall_prompt(question: RecallQuestion, repeats: int = 1, question_first: bool | None = None) -> str:
    """The prompt.

    "<context>. <question>" said once; JRT-Prompt is "<intro> <context>.\\n<context>. <question>".

    Args:
      question: what is asked.
      repeats: how often the context is said.
      question_first: begin with ``question.intro``; None: where the context is said more than once.
    """
    check_positive("repeats", repeats)
    first = repeats > 1 if question_first is None else question_first
    body = "\n".join([f"{question.context}."] * repeats)
    return f"{question.intro + ' ' if first else ''}{body} {question.question}"


def cut_context(
    question: RecallQuestion,
    limit: int,
    tokenize: Callable[[str], Sequence[int]],
    detokenize: Callable[[Sequence[int]], str],
) -> RecallQuestion:
    """The question with the first ``limit`` tokens of its context; the paper takes 1024 or 2048."""
    check_positive("limit", limit)
    tokens = tokenize(question.context)
    if len(tokens) <= limit:
        return question
    return dataclasses.replace(question, context=detokenize(tokens[:limit]))


def contains(prediction: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers is in the prediction, in capitals or not: the paper's score of all six data sets."""
    return any(answer.lower() in prediction.lower() for answer in answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's F1: overlap of the words of prediction and answer, without case, punctuation and articles; of the best answer.

    Where prediction or answer has no words, 1 if neither has any, else 0.
    """

    def words(text):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return collections.Counter(w for w in kept.split() if w not in ("a", "an", "the"))

    def score(answer):
        said, wanted = words(prediction), words(answer)
        if not said or not wanted:
            return float(said == wanted)
        return 2 * (said & wanted).total() / (said.total() + wanted.total())

    return max(score(answer) for answer in answers)


def recall_scores(
    answer: Callable[[list[str]], list[str]],
    questions: Sequence[RecallQuestion],
    *,
    repeats: int = 1,
    question_first: bool | None = None,
    batch_size: int = 8,
) -> dict[str, float]:
    """Asks a model.

    Args:
      answer: prompts -> what the model says to each (greedily, at most ``MAX_NEW_TOKENS`` tokens); cut here at the first
        line break.
      questions: what is asked.
      repeats, question_first: see ``recall_prompt``.
      batch_size: prompts per call of ``answer``; they are ordered by length, so that little is padded.

    Returns:
      Means: ``contains`` and ``f1``.
    """
    check_positive("batch_size", batch_size)
    prompts = [recall_prompt(q, repeats, question_first) for q in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    said = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, text in zip(chosen, answer([prompts[i] for i in chosen]), strict=True):
            said[i] = text.split("\n")[0]
    pairs = list(zip(said, (q.answers for q in questions), strict=True))
    return {
        "contains": float(np.mean([contains(text, answers) for text, answers in pairs])),
        "f1": float(np.mean([token_f1(text, answers) for text, answers in pairs])),
    }
