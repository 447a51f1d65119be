"""A tokenizer trained on the spot, with or without the special tokens that real ones have or lack."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TokenizerFactory = Callable[..., PreTrainedTokenizerFast]


def train_tokenizer(bos: bool = True, pad: bool = True, end_of_chunk: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE with some merges."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", *["<|pad|>"] * pad, *["<|endofchunk|>"] * end_of_chunk]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["3 ? 5 = 8 hello world, hello image"] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        **({"bos_token": "<|endoftext|>"} if bos else {}),
        **({"pad_token": "<|pad|>"} if pad else {}),
    )


@pytest.fixture
def make_tokenizer() -> TokenizerFactory:
    return train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    from flamingo_lite.text.tokenizer import add_tokens

    trained = train_tokenizer()
    add_tokens(trained)
    return trained
