"""Our tokenizer as one of the `tokenizers` library, which transformers reads, with the same ids as tiktoken's."""

import re
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from mlm_dist.data.preparation import SAMPLE_TEXT
from mlm_dist.data.tokenizer import END_OF_TEXT, MASK, Tokenizer, byte_characters
from mlm_dist.errors import UserError

# What two readings of a pattern could come to differ in: contractions, digits, white space, ends of lines, scripts.
HARD_TEXT = (
    "I'll DON'T he'D ''em  two   three\t\ttabs \t \r\n\r\n windows\n \n\n 1 22 333 4444 1234567890 3.14 ½²Ⅷ ٣٤٥٦٧ x2y"
    " 12TH snake_case CamelCase ABCd //a\n/ (c) --- ...!?\n''\u00a0\u2028\u3000wide e\u0301 é ǅ ʰ 吾輩は猫。 हिन्दी"
    " 👩\u200d👧 🇩🇪 \x00\x1b \ufeff  end  \n  "
)
HARD_MASKS = f"{MASK}a {MASK} b  {MASK}\n{MASK} \t{MASK}\n {MASK}.{MASK}{MASK} {MASK} {MASK} "

# A plus after such a count forbids tiktoken to try fewer, and tells `tokenizers` to repeat it. Where nothing follows
# that fewer would help, as in tiktoken's encodings, it changes nothing and can go.
COUNT_THAT_GIVES_NOTHING_BACK = re.compile(r"(\{\d+(?:,\d*)?\})\+")

CHARACTERS = byte_characters()


def convert_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A byte-level BPE of the `tokenizers` library with the same ids.

    The texts of the special tokens are those tokens, and `[MASK]` takes one space before it along, as in
    `Tokenizer.encode_with_masks`.

    Raises:
        UserError: the library does not follow the encoding's pattern.
    """
    try:
        pattern = Regex(COUNT_THAT_GIVES_NOTHING_BACK.sub(r"\1", tokenizer.pattern))
    except Exception as error:  # the library has no type of its own for it
        raise UserError(f"{cannot_follow(tokenizer)}: {error}") from error
    converted = tokenizers.Tokenizer(
        models.BPE(
            # The special tokens stand here too since the library would number them through, and there may be gaps.
            vocab={in_characters(token): rank for token, rank in tokenizer.ranks.items()} | tokenizer.special_tokens,
            merges=[(in_characters(left), in_characters(right)) for left, right in find_merges(tokenizer.ranks)],
            ignore_merges=True,  # a word that is a token is that token, as for tiktoken
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
    # `normalized`: looked for in the text whose spaces the normalizer has taken, and not before.
    converted.add_special_tokens([AddedToken(MASK, normalized=True)])
    converted.add_special_tokens([name for name in tokenizer.special_tokens if name != MASK])
    check(converted, tokenizer)
    return converted


def find_merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every two tokens that make a third, by that one's rank: tiktoken joins what comes to the lowest."""
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(token)):
            if token[:cut] in ranks and token[cut:] in ranks:
                yield token[:cut], token[cut:]


def in_characters(token: bytes) -> str:
    """A token as `tokenizers` writes it, a printable character a byte."""
    return "".join(CHARACTERS[byte] for byte in token)


def check(converted: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    """Raise `UserError` if a tokenizer and what it was converted into come to different ids on hard texts."""
    for text in (SAMPLE_TEXT.read_text(encoding="utf-8"), HARD_TEXT):
        if converted.encode(text).ids != tokenizer.encode(text).tolist():
            raise UserError(cannot_follow(tokenizer))
    if converted.encode(HARD_MASKS).ids != tokenizer.encode_with_masks(HARD_MASKS):
        raise UserError(cannot_follow(tokenizer))


def cannot_follow(tokenizer: Tokenizer) -> str:
    """What to say of an encoding that cannot be converted."""
    return (
        f"the tokenizer '{tokenizer.name}' cannot be exported, since the tokenizers library does not cut texts as its "
        f"pattern {tokenizer.pattern} does"
    )


def describe_tokenizer(block_size: int) -> dict[str, Any]:
    """What `tokenizer_config.json` says: the roles of the special tokens, and how many tokens the model sees."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "mask_token": MASK,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT),
    }
