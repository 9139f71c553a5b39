"""Converting a `Tokenizer` to the `tokenizers` library, which transformers reads, with the same ids as in tiktoken."""

import re
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import END_OF_TEXT, MASK, Tokenizer, byte_characters
from mlm_dist.errors import UserError

# Two regex engines may disagree on contractions, digits, white space, line ends and scripts.
HARD_TEXT = (
    "I'll DON'T he'D ''em  two   three\t\ttabs \t \r\n\r\n windows\n \n\n 1 22 333 4444 1234567890 3.14 ½²Ⅷ ٣٤٥٦٧ x2y"
    " 12TH snake_case CamelCase ABCd //a\n/ (c) --- ...!?\n''\u00a0\u2028\u3000wide e\u0301 é ǅ ʰ 吾輩は猫。 हिन्दी"
    " 👩\u200d👧 🇩🇪 \x00\x1b \ufeff  end  \n  "
)
HARD_MASKS = f"{MASK}a {MASK} b  {MASK}\n{MASK} \t{MASK}\n {MASK}.{MASK}{MASK} {MASK} {MASK} "

# In tiktoken, a plus after such a count is possessive: it forbids backtracking to fewer repeats. In `tokenizers`, it
# repeats the count. If backtracking could not help what follows to match, as in tiktoken's encodings, the plus changes
# nothing and can be removed.
POSSESSIVE_COUNT = re.compile(r"(\{\d+(?:,\d*)?\})\+")

CHARACTERS = byte_characters()


def convert_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Convert a tokenizer to a byte-level BPE of the `tokenizers` library with the same ids.

    The text of a special token is encoded as that token. `[MASK]` includes one space before it, as in
    `Tokenizer.encode_with_masks`.

    Raises:
        UserError: the library does not split texts as the encoding's pattern does.
    """
    try:
        pattern = Regex(POSSESSIVE_COUNT.sub(r"\1", tokenizer.pattern))
    except Exception as error:  # the library does not raise a more specific type
        raise UserError(f"{mismatch_message(tokenizer)}: {error}") from error
    converted = tokenizers.Tokenizer(
        models.BPE(
            # Includes the special tokens, whose ids may not be consecutive. The library would make them consecutive.
            vocab={to_characters(token): rank for token, rank in tokenizer.ranks.items()} | tokenizer.special_tokens,
            merges=[(to_characters(left), to_characters(right)) for left, right in find_merges(tokenizer.ranks)],
            ignore_merges=True,  # a word that is in the vocabulary is one token, as in tiktoken
        )
    )
    converted.normalizer = normalizers.Replace(" " + MASK, MASK)
    converted.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    converted.decoder = decoders.ByteLevel()
    # `normalized`: matched only after the normalizer has removed the space before it.
    converted.add_special_tokens([AddedToken(MASK, normalized=True)])
    converted.add_special_tokens([name for name in tokenizer.special_tokens if name != MASK])
    check(converted, tokenizer)
    return converted


def find_merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield all pairs of tokens that join to a third token, ordered by its rank. tiktoken merges the lowest first."""
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(token)):
            if token[:cut] in ranks and token[cut:] in ranks:
                yield token[:cut], token[cut:]


def to_characters(token: bytes) -> str:
    """Spell a token as `tokenizers` does, with one printable character per byte."""
    return "".join(CHARACTERS[byte] for byte in token)


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


def describe_tokenizer(block_size: int) -> dict[str, Any]:
    """The content of `tokenizer_config.json`: the roles of the special tokens, and the model's block size."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "mask_token": MASK,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT),
    }
