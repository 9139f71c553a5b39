"""Tokens as a person reads them."""

from mlm_dist.data.tokenizer import Tokenizer
from mlm_dist.plots.style import printable


def label(tokenizer: Tokenizer, token: int) -> str:
    """A token with its spaces visible; one that is no whole character as its bytes in hexadecimal."""
    content = tokenizer.encoding.decode_single_token_bytes(token)
    try:
        return visible(content.decode())
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in content)


def visible(text: str) -> str:
    """A token's text with its spaces as dots."""
    return printable(text).replace(" ", "·")
