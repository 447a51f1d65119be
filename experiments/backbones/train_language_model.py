"""Trains the tiny language model, a stock Llama, on the text twins of all families.

Rows are filled with whole documents. The answers carry full weight in the loss and everything else a tenth: most other
tokens (random operands, random scenes) cannot be predicted, and their gradient is noise.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import random
import time
from collections.abc import Iterator

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flamingo_lite.data.synthetic.operators import RULES, TRAINED_RULES, draw_operands
from flamingo_lite.data.synthetic.text_twins import ALL_PAIRS, text_document

CONTEXT = 1024
OTHER_WEIGHT = 0.1
Row = tuple[torch.Tensor, torch.Tensor]


class Rows(IterableDataset[Row]):
    """Batches of `tokens` tokens: seven of short rows, then one of rows as long as the context."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, steps: range, tokens: int) -> None:
        self.tokenizer, self.seed, self.steps, self.tokens = tokenizer, seed, steps, tokens

    def __iter__(self) -> Iterator[Row]:
        for step in self.steps:
            generator = random.Random(f"{self.seed} {step}")
            length = CONTEXT if step % 8 == 7 else 256
            rows = [self.row(generator, length) for _ in range(self.tokens // length)]
            yield torch.tensor([ids for ids, _ in rows]), torch.tensor([weights for _, weights in rows])

    def row(self, generator: random.Random, length: int) -> tuple[list[int], list[float]]:
        """Whole documents until the row is full; the last one is cut."""
        bos, end = self.tokenizer.bos_token_id, self.tokenizer.convert_tokens_to_ids("<|endofchunk|>")
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            ids.append(bos)
            weights.append(OTHER_WEIGHT)
            size = generator.randint(1, 10) if length == CONTEXT else 1
            texts = text_document(generator, size).texts
            encoded = self.tokenizer([text.text for text in texts], add_special_tokens=False)["input_ids"]
            for text, tokens in zip(texts, encoded, strict=True):
                tail = [end] if text.ends_chunk else []
                ids += [*tokens, *tail]
                weights += [1.0 if text.loss else OTHER_WEIGHT] * (len(tokens) + len(tail))
        return ids[:length], weights[:length]


def schedule(step: int, steps: int, horizon: int, anneal: int, warmup: int = 150) -> float:
    """Linear warmup, a cosine that would reach 2% at `horizon`, and over the last `anneal` steps a line down to 0."""
    warm = min(1.0, (step + 1) / warmup)
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, horizon - warmup)))
    return warm * cosine * min(1.0, (steps - step) / max(1, anneal))


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, shots: int, rule: str | None
) -> float:
    """Exact match of the answer after `shots` examples, teacher-forced over 300 episodes of "[a ? b] = c"."""
    generator = random.Random(f"evaluation {shots} {rule}")
    end = "<|endofchunk|>"
    right = 0
    for _ in range(300):
        hidden = rule or generator.choice(TRAINED_RULES)
        examples = [draw_operands(generator, hidden, ALL_PAIRS) for _ in range(shots)]
        a, b = generator.choice(ALL_PAIRS)
        text = "".join(f"[{x} ? {y}] = {RULES[hidden](x, y)}{end}" for x, y in examples) + f"[{a} ? {b}] ="
        prompt = tokenizer(tokenizer.bos_token + text, add_special_tokens=False)["input_ids"]
        answer = tokenizer(f" {RULES[hidden](a, b)}{end}", add_special_tokens=False)["input_ids"]
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        right += logits.argmax(-1).tolist() == answer
    return right / 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, help="a folder that holds the tokenizer"
    )
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--horizon", type=int, default=1600, help="of the cosine")
    parser.add_argument("--anneal", type=int, default=150, help="steps of the last descent")
    parser.add_argument(
        "--first", type=int, default=0, help="continue the weights in --output from this step on"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="per step")
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(arguments.output)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    if arguments.first:
        model = LlamaForCausalLM.from_pretrained(arguments.output, dtype=torch.float32)
    model = model.to(device).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    steps = range(arguments.first, arguments.steps)
    rows = Rows(tokenizer, arguments.seed, steps, arguments.tokens)
    loader = DataLoader(rows, batch_size=None, num_workers=1, prefetch_factor=8)
    started = time.time()
    for step, (ids, weights) in zip(steps, loader, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * schedule(
                step, arguments.steps, arguments.horizon, arguments.anneal
            )
        ids, weights = ids.to(device), weights[:, 1:].to(device)
        with torch.autocast(device, torch.bfloat16):
            logits = model(ids, use_cache=False).logits
        losses = functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        loss = (losses * weights.flatten()).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.time() - started:6.0f} s", flush=True)
        if step % 250 == 249 or step == arguments.steps - 1:
            model.save_pretrained(arguments.output)
            print(
                {shots: accuracy(model.eval(), tokenizer, shots, None) for shots in (0, 1, 2, 4, 8)},
                flush=True,
            )
            model.train()
    model.eval()
    figures = {
        "steps": arguments.steps,
        "tokens": arguments.steps * arguments.tokens,
        "wall_seconds": round(time.time() - started),
        "final_loss": round(loss.item(), 4),
        "accuracy": {
            f"{shots} shots": accuracy(model, tokenizer, shots, None) for shots in (0, 1, 2, 4, 8, 16)
        },
        "accuracy_8_shots_by_rule": {rule: accuracy(model, tokenizer, 8, rule) for rule in RULES},
        "parameters": model.num_parameters(),
    }
    print(json.dumps(figures, indent=1))
    pathlib.Path(__file__).with_name("language_model.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
