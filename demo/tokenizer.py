"""The demo model's tokenizer: byte-level BPE learnt on the training text, and token ids of a text file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.corpus import END_OF_TEXT, read_documents

VOCABULARY_SIZE = 4096
END_OF_TEXT_ID = 0


def train_tokenizer(text_file: Path, vocabulary_size: int = VOCABULARY_SIZE) -> Tokenizer:
    """A byte-level BPE of `vocabulary_size` tokens: id 0 is END_OF_TEXT, every byte has a token.

    An empty line between paragraphs is a token of its own.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n\n"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_documents(text_file), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    # The class name that every release of transformers knows, not the one of the installed release.
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def encode_file(tokenizer: Tokenizer, text_file: Path) -> npt.NDArray[np.uint16]:
    """Ids of all documents in order, each followed by END_OF_TEXT_ID. uint16 [tokens]."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(read_documents(text_file)):
        ids += encoding.ids
        ids.append(END_OF_TEXT_ID)
    return np.array(ids, dtype=np.uint16)


def text_bytes(text_file: Path) -> int:
    """UTF-8 bytes of the documents, separators not counted: the denominator of bits per byte."""
    return sum(len(document.encode("utf-8")) for document in read_documents(text_file))
