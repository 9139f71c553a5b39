"""Texts as the sequences of token ids that stock transformers makes of them.

A sequence begins with `<|endoftext|>`, as a document does in training, and the head of the model
reads the state of this token. Two texts are one sequence, with `<|endoftext|>` between them.
"""

from collections.abc import Sequence

import tokenizers
from tokenizers.processors import TemplateProcessing

from mlm_dist.data.tokenizer import END_OF_TEXT, Tokenizer
from mlm_dist.errors import UserError
from mlm_dist.huggingface.tokenizer_file import convert_tokenizer

SHORTEST = 4  # tokens: two texts of one token each


def sequence_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer of the `tokenizers` library that makes these sequences.

    Raises:
        UserError: the library does not support the encoding's pattern.
    """
    converted = convert_tokenizer(tokenizer)
    converted.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, tokenizer.end_id)],
    )
    return converted


def encode_texts(
    converted: tokenizers.Tokenizer, texts: Sequence[tuple[str, ...]], block_size: int
) -> tuple[list[list[int]], int]:
    """The sequences of texts, of at most `block_size` tokens, and how many of them were cut.

    Args:
        converted: of `sequence_tokenizer`.
        texts: one or two each.
        block_size: the largest number of tokens that the model reads at once.

    Raises:
        UserError: `block_size` is too small.
    """
    if block_size < SHORTEST:
        raise UserError(f"full fine-tuning needs a model.block_size of at least {SHORTEST}, not {block_size}")
    converted.enable_truncation(block_size)
    batch = [one[0] if len(one) == 1 else one for one in texts]
    encoded = converted.encode_batch(batch)
    converted.no_truncation()
    return [one.ids for one in encoded], sum(bool(one.overflowing) for one in encoded)
