"""Tokenizers of the kinds that real language models have, trained on the spot: every text comes back from its ids."""

import functools
import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.tokenizer import add_tokens

KINDS = ("bpe", "bpe_first", "byte_level_bpe", "unigram")
SINGLE = [*dict.fromkeys(token for template in CONVERSATIONS.values() for token in template.tokens)]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
CORPUS = [
    "USER: What is in the picture? ASSISTANT: A cat, and a dog behind it.",
    "A chat between a curious user and an artificial intelligence assistant.",
    "### Instruction: Describe it briefly. ### Response: It is a cat.",
    "[INST] Human: user assistant system model GPT: User: [/INST] yes no",
] * 4


def _plain(trained: list[str]) -> list[str]:
    return [token for token in trained if token not in SPECIAL and token not in BYTES]


def _bpe(prepend_scheme: str | None) -> Tokenizer:
    """Llama's: blanks are part of words, what is unknown goes byte by byte; the first blank by a normalizer
    (legacy) or by Metaspace."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=220, show_progress=False))
    core = json.loads(trained.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *BYTES, *_plain(list(core["vocab"]))])}
    merges = [tuple(merge) for merge in core["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if prepend_scheme is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    return tokenizer


def _unigram() -> Tokenizer:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    pieces = [
        (piece, score)
        for piece, score in json.loads(trained.to_str())["model"]["vocab"]
        if piece not in SPECIAL
    ]
    vocabulary = [*((token, 0.0) for token in SPECIAL), *((token, -20.0) for token in BYTES), *pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@functools.cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind, with all tokens that conversation templates need."""
    core = {
        "bpe": lambda: _bpe(None),
        "bpe_first": lambda: _bpe("first"),
        "byte_level_bpe": _byte_level,
        "unigram": _unigram,
    }[kind]()
    if kind != "byte_level_bpe":
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    add_tokens(tokenizer, ["<|endofchunk|>", "<image>", *SINGLE])
    return tokenizer


def decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text of ids from the middle of a text: decoders drop the blank of what they take for a first word."""
    anchor = tokenizer.convert_tokens_to_ids("a")
    return tokenizer.decode([anchor, *ids])[1:]
