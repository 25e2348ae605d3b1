"""Overrides are typed, and a wrong one is answered with what would be right."""

import dataclasses
import json
from collections.abc import Mapping

import pytest

from experiments.config import flat, override, parse_settings, plain
from experiments.errors import UsageError
from experiments.experiment import Training
from tests.experiments.toy import Config, Model


@dataclasses.dataclass(frozen=True)
class Part:
    size: int = 3
    rate: float | None = 0.5


@dataclasses.dataclass(frozen=True)
class Whole:
    name: str = "a"
    flag: bool = True
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "x")
    parts: tuple[Part, ...] = (Part(), Part(4))
    options: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"a": 1.0})
    spec: str | Mapping[str, object] = "lru"
    limit: int | None = None
    part: Part = Part()
    training: Training = Training()


@pytest.mark.parametrize(
    ("path", "text", "wanted"),
    [
        ("name", "12", "12"),
        ("flag", "false", False),
        ("sizes", "3,4,5", (3, 4, 5)),
        ("sizes", "[3, 4]", (3, 4)),
        ("sizes", "", ()),
        ("sizes.1", "9", (1, 9)),
        ("pair", "2,y", (2, "y")),
        ("options", '{"b": 2}', {"b": 2.0}),
        ("options.a", "3.5", {"a": 3.5}),
        ("spec", "lstm", "lstm"),
        ("spec", '{"name": "lstm", "k": 2}', {"name": "lstm", "k": 2}),
        ("limit", "7", 7),
        ("limit", "None", None),
        ("part.rate", "none", Part(3, None)),
        ("part.rate", "1e-3", Part(3, 1e-3)),
        ("part", '{"size": 8}', Part(8)),
        ("parts.1.size", "8", (Part(), Part(8))),
        ("training.steps", "10", Training(steps=10)),
        ("training.slow", "a/.*,b", Training(slow=("a/.*", "b"))),
    ],
)
def test_values_are_read_by_the_type_of_the_field(path, text, wanted):
    got = getattr(override(Whole(), {path: text}), path.split(".")[0])
    assert got == wanted and type(got) is type(wanted)


def test_values_from_a_notebook_are_checked_like_text():
    config = override(Whole(), {"training.steps": 10, "limit": 3, "sizes": [5], "part": Part(1), "training.ema": None})
    assert (config.training.steps, config.limit, config.sizes, config.part.size) == (10, 3, (5,), 1)
    with pytest.raises(UsageError, match=r"training.steps=1.5: expected an integer"):
        override(Whole(), {"training.steps": 1.5})


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("nam", "x", "no field 'nam'; did you mean 'name'"),
        ("training.stepz", "1", "did you mean 'training.steps'"),
        ("flag", "yess", "expected true or false"),
        ("limit", "x", "expected an integer or None"),
        ("part.rate", "fast", "expected a number or None"),
        ("sizes", "1,x", "expected an integer, got 'x'"),
        ("sizes.5", "1", "positions 0 to 1"),
        ("pair", "1", "expected 2 values"),
        ("options", "3", "expected a JSON object"),
        ("name.first", "x", "has no parts"),
        ("parts.0.siz", "1", "did you mean 'parts.0.size'"),
        ("part", '{"siz": 8}', "did you mean 'size'"),
        ("part", "8", "JSON object of Part fields"),
        ("training.steps", "1e3", "expected an integer"),
        ("training.learning_rate", "nan", "NaN"),
    ],
)
def test_a_wrong_path_or_value_gets_one_line_that_says_what_is_right(path, text, message):
    with pytest.raises(UsageError) as error:
        override(Whole(), {path: text})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_the_dataclass_refuses_is_a_usage_error():
    with pytest.raises(UsageError, match="width must be a positive integer, got -1"):
        override(Config(), {"model.width": "-1"})


def test_settings_need_a_name_and_a_value():
    assert parse_settings(["a.b=1", "c="]) == {"a.b": "1", "c": ""}
    for wrong in ("a", "=1"):
        with pytest.raises(UsageError, match="NAME=VALUE"):
            parse_settings([wrong])


def test_plain_configurations_are_json_and_flatten_to_paths():
    config = plain(Config(model=Model(widths=(1, 2))))
    assert json.loads(json.dumps(config)) == config
    assert flat(config)["model.widths"] == [1, 2] and flat(config)["training.steps"] == 60
