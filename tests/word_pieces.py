"""A tokenizer of word pieces made in memory, with [CLS] and [SEP] around texts and between those of a pair."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (
    "the",
    "ship",
    "left",
    "port",
    "##s",
    "##ing",
    "sail",
    "é",
    "ü",
    "b",
    "##er",
    "new",
    "##found",
    "land",
)


def word_pieces() -> Tokenizer:
    """SPECIAL, then WORDS; everything else is [UNK]."""
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(strip_accents=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(list(SPECIAL))
    return made


def in_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same as transformers knows it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
