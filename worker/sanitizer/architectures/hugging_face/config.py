"""Read an uploaded config.json as data: every field is known, typed and bounded before a library sees any of it.

The rule: a field that shapes the network is checked and handed on; one that the library works out from others must be
equal to what it works out; one that cannot change a prediction is ignored; any other is refused, whatever its value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.sanitizer.architectures.hugging_face.families import FAMILIES, INERT, READ, Family
from worker.sanitizer.refusals import (
    ConfigCarriesCodeError,
    CorruptConfigError,
    InvalidConfigFieldError,
    UnknownConfigFieldError,
    UnknownModelTypeError,
)
from worker.sanitizer.spec import MAX_CLASSES

MAX_BYTES = 8 * 2**20
# Blocks of all stages together; the deepest published classifier of these families has 50.
MAX_BLOCKS = 256
# What transformers takes where a configuration says neither num_labels nor id2label.
DEFAULT_CLASSES = 2

# With these, transformers would import Python files of the repository or of another one.
_CODE = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
_BLOCKS = ("depth", "depths", "num_hidden_layers", "num_block_repeats", "n_attn_blocks")
_EXPORT = "export the model to .pt2 on a machine of your own instead (docs/hugging-face.md)"


@dataclass(frozen=True, slots=True)
class Described:
    """A network as a config.json describes it.

    Attributes:
        model_type: The family's name.
        class_name: Of the image classifier.
        fields: What is handed on to the library.
        derived: What the library must work out.
        num_classes: K.
        in_channels: C.
    """

    model_type: str
    class_name: str
    fields: Mapping[str, Any]
    derived: Mapping[str, Any]
    num_classes: int
    in_channels: int

    @property
    def family(self) -> Family:
        """What is known of its model_type."""
        return FAMILIES[self.model_type]


def parse(data: bytes) -> Described:
    """The network that these bytes of a config.json describe.

    Raises:
        CheckpointRefusedError: corrupt_config, config_carries_code, unknown_model_type, unknown_config_field,
            invalid_config_field.
    """
    config = refuse_code(data, "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnknownModelTypeError(
            f"config.json is of the model_type {str(model_type)[:60]!r}; the image classifiers that are built by name "
            f"are: {', '.join(FAMILIES)}; of another, {_EXPORT}"
        )
    family = FAMILIES[model_type]
    known = {*family.fields, *family.derived, *family.inert, *INERT, *READ}
    unknown = sorted(set(config) - known)
    if unknown:
        raise UnknownConfigFieldError(
            f"config.json has the field {unknown[0][:60]!r}, which {model_type!r} is not known to have; take it out if "
            f"the model does not need it, or {_EXPORT}"
        )
    for name, kind in family.fields.items():
        if name in config and not kind.accepts(config[name]):
            raise InvalidConfigFieldError(f"{name!r} of config.json must be {kind}")
    _refuse_deep(config)
    return Described(
        model_type=model_type,
        class_name=_class_name(config, family),
        fields={name: config[name] for name in family.fields if name in config},
        derived={name: config[name] for name in sorted(family.derived) if name in config},
        num_classes=_num_classes(config),
        in_channels=config.get("num_channels", 3),
    )


def refuse_code(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in these bytes, which must not name code.

    Raises:
        CheckpointRefusedError: corrupt_config, config_carries_code.
    """
    if len(data) > MAX_BYTES:
        raise CorruptConfigError(f"{name} has {len(data)} bytes; at most {MAX_BYTES} are accepted")
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        # ValueError covers bad UTF-8, bad JSON, names given twice and integers of thousands of digits.
        raise CorruptConfigError(f"{name} is not valid JSON, or names a field twice; save it again") from error
    if not isinstance(parsed, dict):
        raise CorruptConfigError(f"{name} is not a JSON object; save the model with save_pretrained")
    carried = [field for field in _CODE if parsed.get(field)]
    if carried:
        raise ConfigCarriesCodeError(
            f"{name} has {carried[0]!r}: the model is Python code of its own, which is never run here; {_EXPORT}"
        )
    return parsed


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is given twice")
    return result


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _refuse_deep(config: Mapping[str, Any]) -> None:
    counts = [config[name] for name in _BLOCKS if name in config]
    factor = max(1, config.get("depth_coefficient", 1))
    blocks = factor * sum(sum(count) if isinstance(count, list) else count for count in counts if _is_whole(count))
    if blocks > MAX_BLOCKS:
        raise InvalidConfigFieldError(f"config.json asks for {blocks:g} blocks; at most {MAX_BLOCKS} are built")


def _is_whole(count: object) -> bool:
    return all(type(one) is int for one in (count if isinstance(count, list) else [count]))


def _class_name(config: Mapping[str, Any], family: Family) -> str:
    named = config.get("architectures")
    if named is None:
        return family.classes[0]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in family.classes:
        raise UnknownModelTypeError(
            f"'architectures' of config.json must name one image classifier ({' or '.join(family.classes)}), not "
            f"{json.dumps(named)[:100]}; save the model with its classification head"
        )
    return str(named[0])


def _num_classes(config: Mapping[str, Any]) -> int:
    """As transformers counts them: the names where there are any, else the number."""
    names, number = config.get("id2label"), config.get("num_labels")
    if number is not None and (type(number) is not int or not 2 <= number <= MAX_CLASSES):
        raise InvalidConfigFieldError(f"'num_labels' of config.json must be a whole number from 2 to {MAX_CLASSES}")
    if names is None:
        return DEFAULT_CLASSES if number is None else number
    if (
        not isinstance(names, dict)
        or not 2 <= len(names) <= MAX_CLASSES
        or set(names) != {str(index) for index in range(len(names))}
        or not all(isinstance(name, str | int) for name in names.values())
    ):
        raise InvalidConfigFieldError("'id2label' of config.json must name each class from \"0\" on, at least two")
    if number is not None and number != len(names):
        raise InvalidConfigFieldError(
            f"'num_labels' of config.json is {number}, but 'id2label' names {len(names)} classes; correct one of them"
        )
    return len(names)
