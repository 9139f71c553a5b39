"""Converting a `Tokenizer` to the files that transformers reads, with the same ids as in tiktoken."""

from typing import Any

import tokenizers

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import END_OF_TEXT, MASK, Tokenizer
from mlm_dist.data.tokenizer_json import NAME_KEY, PATTERN_KEY, to_library
from mlm_dist.errors import UserError

# Two regex engines may disagree on contractions, digits, white space, line ends and scripts.
HARD_TEXT = (
    "I'll DON'T he'D ''em  two   three\t\ttabs \t \r\n\r\n windows\n \n\n 1 22 333 4444 1234567890 3.14 ½²Ⅷ ٣٤٥٦٧ x2y"
    " 12TH snake_case CamelCase ABCd //a\n/ (c) --- ...!?\n''\u00a0\u2028\u3000wide e\u0301 é ǅ ʰ 吾輩は猫。 हिन्दी"
    " 👩\u200d👧 🇩🇪 \x00\x1b \ufeff  end  \n  "
)
HARD_MASKS = f"{MASK}a {MASK} b  {MASK}\n{MASK} \t{MASK}\n {MASK}.{MASK}{MASK} {MASK} {MASK} "


def convert_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Convert a tokenizer to a byte-level BPE of the `tokenizers` library with the same ids.

    Raises:
        UserError: the library does not split texts as the encoding's pattern does.
    """
    try:
        converted = to_library(tokenizer)
    except ValueError as error:
        raise UserError(f"{mismatch_message(tokenizer)}: {error}") from error
    check(converted, tokenizer)
    return converted


def check(converted: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    """Raise `UserError` if a tokenizer and the converted one give different ids on hard texts."""
    for text in (SAMPLE_TEXT.read_text(encoding="utf-8"), HARD_TEXT):
        if converted.encode(text).ids != tokenizer.encode(text).tolist():
            raise UserError(mismatch_message(tokenizer))
    if converted.encode(HARD_MASKS).ids != tokenizer.encode_with_masks(HARD_MASKS):
        raise UserError(mismatch_message(tokenizer))


def mismatch_message(tokenizer: Tokenizer) -> str:
    """The error message for an encoding that cannot be converted."""
    return (
        f"the tokenizer '{tokenizer.name}' cannot be exported: the tokenizers library does not split texts as its "
        f"pattern {tokenizer.pattern} does"
    )


def describe_tokenizer(tokenizer: Tokenizer, block_size: int) -> dict[str, Any]:
    """The content of `tokenizer_config.json`: the roles of the special tokens, and the model's block size.

    With it, the name and the pattern of the encoding, for `read_exported_tokenizer`.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "mask_token": MASK,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT),
        NAME_KEY: tokenizer.name,
        PATTERN_KEY: tokenizer.pattern,
    }
