"""Trains the tiny language model's tokenizer on text twins: byte-level BPE, a digit is always a token of its own."""

from __future__ import annotations

import argparse
import pathlib
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from flamingo_lite.data.synthetic.text_twins import text_document
from flamingo_lite.document import END_OF_CHUNK

SPLIT = r" ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]|\s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--vocabulary", type=int, default=512)
    arguments = parser.parse_args()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    generator = random.Random("tokenizer")
    corpus = (
        "".join(segment.text for segment in text_document(generator, 1).texts)
        for _ in range(arguments.documents)
    )
    trainer = trainers.BpeTrainer(
        vocab_size=arguments.vocabulary,
        special_tokens=["<|endoftext|>", "<|pad|>", END_OF_CHUNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        additional_special_tokens=[END_OF_CHUNK],
        model_max_length=1024,
    ).save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
