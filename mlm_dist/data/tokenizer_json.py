"""The tokenizer.json of an exported model: a `Tokenizer` as a byte-level BPE of the `tokenizers` library, and back."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlm_dist.data.tokenizer import MASK, Tokenizer, byte_characters, check_vocabulary
from mlm_dist.errors import UserError
from mlm_dist.files import LARGEST_JSON, read_json, read_text

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

# Keys of tokenizer_config.json. transformers keeps keys that it does not know when it saves a tokenizer.
NAME_KEY = "tiktoken_name"
PATTERN_KEY = "tiktoken_pattern"
UNKNOWN_NAME = "exported"  # of an export without these keys, as earlier versions wrote it

# In tiktoken, a plus after such a count is possessive: it forbids backtracking to fewer repeats. In `tokenizers`, it
# repeats the count. If backtracking could not help what follows to match, as in tiktoken's encodings, the plus changes
# nothing and can be removed.
POSSESSIVE_COUNT = re.compile(r"(\{\d+(?:,\d*)?\})\+")

CHARACTERS = byte_characters()
TO_BYTE = {character: byte for byte, character in enumerate(CHARACTERS)}


def to_library(tokenizer: Tokenizer) -> "tokenizers.Tokenizer":
    """Convert a tokenizer to one of the `tokenizers` library.

    The text of a special token is encoded as that token. `[MASK]` includes one space before it, as in
    `Tokenizer.encode_with_masks`.

    Raises:
        ValueError: the library does not support the encoding's pattern.
    """
    # Imported here, because the library is slow to import.
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers  # noqa: PLC0415
    from tokenizers import Tokenizer as LibraryTokenizer  # noqa: PLC0415

    try:
        pattern = Regex(POSSESSIVE_COUNT.sub(r"\1", tokenizer.pattern))
    except Exception as error:  # the library does not raise a more specific type
        raise ValueError(str(error)) from error
    converted = LibraryTokenizer(
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


def read_exported_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of an exported model, also after transformers has saved it.

    Its fingerprint is that of the tokenizer that was exported. An export of an earlier version has no `PATTERN_KEY`; if
    the pattern has a possessive count, the fingerprint is then another one, although the ids are the same.

    Raises:
        UserError: a file is missing or damaged, or the tokenizer is not of the kind that `to_library` returns.
    """
    file = folder / TOKENIZER_JSON
    try:
        roles, text = read_json(folder / TOKENIZER_CONFIG), read_text(file, largest=LARGEST_JSON)
        return from_library(text, roles.get(NAME_KEY, UNKNOWN_NAME), roles.get(PATTERN_KEY))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}: save the tokenizer in the folder of the model") from error
    except ValueError as error:
        raise UserError(f"{file}: this is not a tokenizer that `export` wrote: {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: this is not a tokenizer that `export` wrote: a value in it is missing") from error


def from_library(text: str, name: str, pattern: str | None) -> Tokenizer:
    """Convert the text of a `tokenizer.json` to a tokenizer: the inverse of `to_library`.

    Args:
        text: the content of the file.
        name: of the encoding.
        pattern: of the encoding; None: as in the file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not of the kind that `to_library` returns.
    """
    content = parse_with_library(text)
    added = content["added_tokens"]
    if not all(token["special"] for token in added):
        raise ValueError("it has added tokens that are not special")
    if content["model"]["type"] != "BPE":
        raise ValueError(f"its model is {content['model']['type']}, not BPE")
    special_tokens = {token["content"]: token["id"] for token in added}
    vocab = {token: rank for token, rank in content["model"]["vocab"].items() if token not in special_tokens}
    if not set().union(*vocab) <= TO_BYTE.keys():
        raise ValueError("its tokens are not bytes")
    ranks = {bytes(TO_BYTE[c] for c in token): rank for token, rank in vocab.items()}
    check_vocabulary(ranks, special_tokens)
    pattern = pattern or content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    if not isinstance(name, str):
        raise ValueError(f"its name in {TOKENIZER_CONFIG} is not a string")
    tokenizer = Tokenizer.build(name, pattern, ranks, special_tokens)
    expected = json.loads(to_library(tokenizer).to_str())
    for part in ("normalizer", "pre_tokenizer"):
        if content[part] != expected[part]:
            raise ValueError(f"its {part} is another one")
    if content["model"] | {"vocab": vocab} != expected["model"] | {"vocab": vocab}:
        raise ValueError("its merges, or other settings of its model, are not those of tiktoken")
    return tokenizer


def parse_with_library(text: str) -> dict[str, Any]:
    """The JSON that the installed version of `tokenizers` writes for the text of a `tokenizer.json`.

    Raises:
        ValueError: the text is damaged.
    """
    from tokenizers import Tokenizer as LibraryTokenizer  # noqa: PLC0415 (slow to import)

    try:
        content: dict[str, Any] = json.loads(LibraryTokenizer.from_str(text).to_str())
    except Exception as error:  # the library does not raise a more specific type
        raise ValueError(str(error)) from error
    return content
