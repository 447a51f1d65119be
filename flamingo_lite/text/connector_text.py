"""The text that a connector reads beside an image, in ids of a tokenizer of its own: the instruction (InstructBLIP).

Shape letters: m images, s positions of the longest text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flamingo_lite.document import Document, Text


def instruction(document: Document, complete: bool) -> str:
    """What a model may know before it answers: all texts of a prompt, those not trained on of a complete document."""
    return "".join(
        part.text for part in document if isinstance(part, Text) and not (complete and _is_trained(part))
    )


def instruction_ids(
    document: Document, tokenizer: PreTrainedTokenizerBase, complete: bool
) -> tuple[int, ...]:
    """The instruction as the connector's tokenizer writes it, with the special tokens that it puts around a text."""
    return tuple(tokenizer(instruction(document, complete), verbose=False)["input_ids"])


def _is_trained(text: Text) -> bool:
    """Of a conversation the answers alone are."""
    return text.loss and text.role in (None, "assistant")


def pad_texts(texts: Sequence[Sequence[int]], padding_id: int) -> dict[str, Tensor]:
    """`connector_text_ids` and `connector_text_mask` (m s). Padded on the right: positions count from the first."""
    shape = (len(texts), max(map(len, texts), default=0))
    ids = torch.full(shape, padding_id, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
        mask[row, : len(text)] = True
    return {"connector_text_ids": ids, "connector_text_mask": mask}
