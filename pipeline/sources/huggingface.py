"""A folder in Hugging Face format: config.json, safetensors, tokenizer.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.contract import Head
from model_repo.runtime.errors import BadInput

from .architecture import auto_class, has_encoder, model_kind, pools_sentences, refuse_remote_code
from .base import Source
from .checkpoint import PICKLES, weight_files
from .encoder_decoder import decoder_length, encoder_of
from .files import read_json, read_optional_json
from .heads import head_of
from .image_processor import PREPROCESSOR, PROCESSOR
from .images import ImageSource, image_input, image_task
from .loading import load_pretrained
from .names import model_name
from .sentence import sentence_modules
from .vision_language import is_vision_language, placeholder_of
from .vocabulary import check_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from pipeline.recipe import SourceRecipe

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    PREPROCESSOR,
    PROCESSOR,
)
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True)
class HuggingFaceSource(Source):
    """Loaded by transformers from local files only."""

    trust_remote_code: bool = False
    weight_files: tuple[Path, ...] = ()
    store: Path | None = None
    """Folder of files named by content that weights are mapped from; None: they are held."""

    def with_weights_in(self, folder: Path) -> HuggingFaceSource:
        """See `Source.with_weights_in`."""
        return replace(self, store=folder)

    def load(self) -> PreTrainedModel:
        """See `Source.load`. Raises BadInput as `load_pretrained` does."""
        from .dequantized import float_tensors, quantized_checkpoint
        from .mapped import mapped_tensors  # needs numpy and onnx

        shards = [path for path in self.weight_files if path.suffix != ".json"]
        store = self.store
        quantized = quantized_checkpoint(self.folder, shards)

        def mapped() -> Mapping[str, Tensor] | None:
            if quantized is not None:
                return float_tensors(quantized)
            return None if store is None else mapped_tensors(shards, store)

        return load_pretrained(
            auto_class(self.kind, self.head, read_json(self.folder / "config.json")),
            self.folder,
            pickled=any(path.name in PICKLES for path in self.files),
            trust_remote_code=self.trust_remote_code,
            mapped=mapped,
        )


def open_folder(folder: Path, recipe: SourceRecipe, name: str | None = None) -> Source:
    """Checks the folder without importing torch; `name` is the folder's own by default.

    Raises BadInput: no config.json, an architecture that is not carried, remote code or pickles without
    leave, truncated or missing weights, a decoder without tokenizer.json, a tokenizer of another vocabulary, no
    maximum length.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise BadInput(f"{folder} has no config.json; a folder in Hugging Face format is needed")
    config = read_json(config_file)
    refuse_remote_code(config, config_file, recipe.trust_remote_code)
    kind = model_kind(config, config_file)
    weights = weight_files(folder, recipe.allow_pickle)
    small = [folder / file for file in SMALL_FILES if (folder / file).is_file()]
    code = sorted(folder.glob("*.py")) if recipe.trust_remote_code else []
    if kind == "tensors":
        channels, image_size = image_input(folder, config)
        return ImageSource(
            name=name or model_name(str(folder)),
            kind=kind,
            folder=folder,
            files=(*small, *code, *weights),
            task=image_task(config, config["architectures"][0]) or "embedding",
            channels=channels,
            image_size=image_size,
            trust_remote_code=recipe.trust_remote_code,
            seconds=recipe.load_seconds,
        )
    tokenizer_file = folder / "tokenizer.json"
    if kind == "decoder" and not tokenizer_file.is_file():
        raise BadInput(
            f"{folder} has no tokenizer.json, without which text cannot be served; save the tokenizer with "
            "transformers' PreTrainedTokenizerFast.save_pretrained"
        )
    attends = kind == "decoder" and has_encoder(config)
    sees = kind == "decoder" and not attends and is_vision_language(config, config_file)
    text_config = _text_config(config)
    vocab_size = _positive(text_config, "vocab_size", config_file)
    if tokenizer_file.is_file():
        check_vocabulary(tokenizer_file, vocab_size)
    tokenizer_config = read_optional_json(folder / "tokenizer_config.json")
    sentence = sentence_modules(folder, recipe.allow_pickle)
    return HuggingFaceSource(
        name=name or model_name(str(folder)),
        kind=kind,
        folder=folder,
        files=(*small, *sentence.files, *code, *weights),
        tokenizer_file=tokenizer_file if tokenizer_file.is_file() else None,
        chat_template=_chat_template(folder, tokenizer_config),
        end_token_ids=_end_token_ids(read_optional_json(folder / "generation_config.json"), text_config),
        max_length=decoder_length(folder, config) if attends else _max_length(folder, text_config),
        vocab_size=vocab_size,
        pooling=sentence.pooling,
        dense=sentence.dense,
        normalize=sentence.normalize,
        head=head_of(config, config_file) if kind == "encoder" and not pools_sentences(folder) else Head(),
        trust_remote_code=recipe.trust_remote_code,
        weight_files=weights,
        encoder=encoder_of(folder, config) if attends else None,
        placeholder=placeholder_of(folder, config) if sees else None,
    )


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language part of a config that has several parts."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


_TEMPLATE_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The Jinja text: a file of its own, or the tokenizer's (one text, or several by name).

    Templates use the tokenizer's special tokens by name; the names are set at its beginning, so that the text
    stands by itself.
    """
    file = folder / "chat_template.jinja"
    template: Any = tokenizer_config.get("chat_template")
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        return None
    names = "".join(
        f"{{% set {name} = {json.dumps(token)} %}}"
        for name in _TEMPLATE_TOKENS
        if isinstance(token := _token_text(tokenizer_config.get(name)), str)
    )
    # The empty expression keeps trim_blocks away from the template's own first line.
    return f"{names}{{{{ '' }}}}{template}" if names else template


def _token_text(token: Any) -> Any:
    """A special token as tokenizer_config.json holds it: text, or an object with its content."""
    return token.get("content") if isinstance(token, dict) else token


def _end_token_ids(generation: dict[str, Any], config: dict[str, Any]) -> tuple[int, ...]:
    """Token ids that end a completion: what the generation config says, else the config."""
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [ends]
    return tuple(int(token) for token in ends if isinstance(token, int))


def _max_length(folder: Path, config: dict[str, Any]) -> int:
    """Tokens of the longest sequence: sentence-transformers' limit if there is one, else the positions."""
    limit = read_optional_json(folder / "sentence_bert_config.json").get("max_seq_length")
    if isinstance(limit, int) and limit > 0:
        return limit
    for key in _LENGTH_KEYS:
        if key in config:
            positions = _positive(config, key, folder / "config.json")
            # RoBERTa numbers its positions from padding_idx + 1, so it has so many fewer.
            return positions - config["pad_token_id"] - 1 if _counts_from_padding(config) else positions
    raise BadInput(f"{folder / 'config.json'} says no maximum length ({', '.join(_LENGTH_KEYS)})")


def _counts_from_padding(config: dict[str, Any]) -> bool:
    return config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet") and isinstance(
        config.get("pad_token_id"), int
    )


def _positive(config: dict[str, Any], key: str, config_file: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise BadInput(f"{config_file}: {key} is {value!r}; it must be a positive whole number")
    return value
