"""The model of any Hugging Face configuration, on the meta device."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from steepest.lab import models
from steepest.lab.config import override
from steepest.lab.errors import UserError, unknown

# Names of transformers' tables from configuration to class. What has the whole model comes before what may have a part
# of it: for Whisper and BART there is a language model that is their decoder alone.
_WHOLE = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
)
_IMAGES, _PLAIN = "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "MODEL_MAPPING"


def meta_model(model: str, changes: Sequence[str] = (), vocabulary: int | None = None) -> nn.Module:
    """Build a model on the meta device.

    A preset is what a run trains. The class of any other configuration is the one that its `architectures` name, if
    transformers has it; else the first of transformers' tables of classes that has one: encoder-decoder, speech, image
    and text, language model, image classifier, plain model.

    Args:
        model: a preset, or the path of a configuration; see `steepest.lab.memory.count`.
        changes: "key=value" for keys of the configuration; "text_config.num_hidden_layers=2" for one inside another.
        vocabulary: number of tokens in place of the model's.

    Raises:
        UserError: an unknown model or key (with the closest names), or transformers cannot build it.
    """
    base = models.inline(model)
    own = {} if isinstance(base, str) else base
    asked = [*changes, *([] if vocabulary is None else [f"{_vocabulary_key(own)}={vocabulary}"])]
    given = override({}, asked)
    values = {key: value for key, value in override(own, asked).items() if key in given}
    try:
        plain = models.configuration(base)
        for key in values:
            if not hasattr(plain, key):
                raise unknown(f"key of model {model!r}", key, plain.to_dict())
        if isinstance(base, str):
            return models.build({"preset": base, **values}, device="meta")
        config = models.configuration({**base, **values})
        kind = _class_of(model, config)
        with torch.device("meta"):
            network: nn.Module = kind(config)
        return network
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of numbers that do not fit each other
        why = textwrap.shorten(str(error), 240, placeholder=" ...") or type(error).__name__
        raise UserError(f"transformers cannot build {model!r}{f' with {given}' if given else ''}: {why}") from error


def _vocabulary_key(config: dict[str, Any]) -> str:
    """Where the number of tokens is: models of images and text have it in the configuration of the text."""
    inner = "vocab_size" not in config and isinstance(config.get("text_config"), dict)
    return "text_config.vocab_size" if inner else "vocab_size"


def _class_of(model: str, config: Any) -> Any:
    for kind in _candidates(config):
        return kind
    named = f", and none of its own architectures {config.architectures}" if config.architectures else ""
    raise UserError(
        f"transformers knows model_type {config.model_type!r} of {model!r}, but has no class that goes without saying"
        f"{named}. Name the class to count: -o 'architectures=[NameOfTheClass]', or \"architectures\" in the file."
    )


def _candidates(config: Any) -> Iterator[Any]:
    """Classes of transformers for a configuration, the one to take first."""
    import transformers

    for name in config.architectures or ():
        kind = getattr(transformers, str(name), None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            yield kind
    # Of several models in one (CLIP, SigLIP) the image classifier is the one of images alone.
    last = (_PLAIN, _IMAGES) if config.sub_configs else (_IMAGES, _PLAIN)
    for table in (*_WHOLE, *last):
        found = getattr(transformers, table).get(type(config), None)
        if found is not None:
            yield found[0] if isinstance(found, tuple) else found
