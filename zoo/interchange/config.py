"""A foreign config.json, read field by field: every field is used, known to be without effect, or refused."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.checks import nearest

LARGEST_FILE = 2**24  # bytes; configuration and index files of real checkpoints are smaller
LARGEST_SIZE = 2**31

# What says how to run, train or store a model, and nothing of what it computes.
WITHOUT_EFFECT = frozenset(
    (
        "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled", "_name_or_path",
        "architectures", "attn_implementation", "auto_map", "bos_token_id", "chunk_size_feed_forward",
        "classifier_dropout", "decoder_start_token_id", "dtype", "eos_token_id", "forced_bos_token_id",
        "forced_eos_token_id", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder",
        "keys_to_ignore_at_inference", "label2id", "min_length", "model_type", "output_attentions",
        "output_hidden_states", "pad_token_id", "prefix", "pretraining_tp", "problem_type",
        "rescale_prenorm_residual", "residual_in_fp32", "return_dict", "sep_token_id", "task_specific_params",
        "tokenizer_class", "torch_dtype", "transformers_version", "unk_token_id", "use_associative_scan",
        "use_cache", "use_mamba_kernels", "use_mambapy",
    )
)  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError that names the file where there is none."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a file of this kind has at most {LARGEST_FILE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


class Config:
    """Checked reading of a configuration's fields; ``finish`` refuses the fields that nobody asked for.

    Attributes:
      fields: name -> value, as read.
      source: file name, for messages.
    """

    def __init__(self, fields: Mapping[str, Any], source: str = "config"):
        self.fields, self.source = dict(fields), source
        self._known: set[str] = set()

    def value(self, name: str, default: Any = None) -> Any:
        """The field as it stands, ``default`` where it is missing or null."""
        self._known.add(name)
        value = self.fields.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer below 2^31; without a default the field must be there."""
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < LARGEST_SIZE:
            raise self.error(name, "an integer from 1 to 2^31 - 1", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(name, "a finite number", value)
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or False."""
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false", value)
        return value

    def must(self, name: str, *allowed: Any) -> Any:
        """One of ``allowed``; the first stands for a missing field. For what only one value is implemented of."""
        value = self.value(name, allowed[0])
        if value not in allowed:
            raise self.error(name, " or ".join(repr(a) for a in allowed), value)
        return value

    def ignore(self, names: Iterable[str]) -> None:
        """Fields without effect on what this architecture computes."""
        self._known.update(names)

    def finish(self, also: Iterable[str] = ()) -> None:
        """ValueError if there are fields that were neither read nor are known to have no effect."""
        unknown = sorted(set(self.fields) - self._known - WITHOUT_EFFECT - set(also))
        if unknown:
            hints = "".join(nearest(name, self._known) for name in unknown[:1])
            raise ValueError(
                f"{self.source} has fields that are not known: {', '.join(unknown[:8])}{hints}; if they change nothing in "
                "what the model computes, pass ignore_fields=(...)"
            )

    def error(self, name: str, wanted: str, got: Any) -> ValueError:
        """What to raise for a wrong field."""
        return ValueError(f"{self.source}: {name} must be {wanted}, got {str(got)[:80]!r}")
