"""Readable labels of tokens."""

from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.plots.style import printable


def label(tokenizer: Tokenizer, token: int) -> str:
    """The label of a token: its text with visible spaces, or its bytes in hexadecimal if it is not valid UTF-8."""
    content = tokenizer.encoding.decode_single_token_bytes(token)
    try:
        return visible(content.decode())
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in content)


def visible(text: str) -> str:
    """The text of a token, with dots for spaces."""
    return printable(text).replace(" ", "·")
