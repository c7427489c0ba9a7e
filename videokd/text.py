r"""Text from outside (class names, paths, messages of other programs), made safe for where it is shown.

A name can hold a terminal's escape sequences, marks that turn the order of letters around, a spreadsheet's formula or
HTML. One function per kind of output shows it as it is: what nobody can see becomes an escape (`\x1b`, `\u202e`, `\n`),
and what has a meaning there loses it. Nothing is dropped, except for the secrets of URLs, which become `***`.
"""

import html
import json
import re
import sys
import unicodedata
from typing import Any
from urllib.parse import unquote

HIDDEN_SECRET = "***"


def visible(text: str, *, keep: str = "") -> str:
    """The text with an escape in place of each control, format or separator character, but for those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return _UNUSUAL.sub(
        lambda found: _escaped(found[0]) if found[0] not in keep and _is_hidden(found[0]) else found[0], text
    )


def redacted(text: str, *urls: str) -> str:
    """The text without the secrets of the URLs in it: user and password, and the values of a query or fragment.

    Args:
        text: such as an error message of another package.
        urls: that the text is about: their secrets are taken out wherever they stand, also outside a URL.
    """
    for secret in sorted({part for url in urls for part in _secrets(url)}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN_SECRET)
    if ":/" not in text:
        return text
    text = _USER.sub(rf"\1{HIDDEN_SECRET}@", text)
    text = _PASSWORD.sub(rf"\1{HIDDEN_SECRET}@", text)
    return _QUERY.sub(lambda found: found[1] + _without_values(found[2]), text)


def has_secret(url: str) -> bool:
    """Whether a URL holds a password, or what may be one: a query, a fragment, the user of an HTTP address."""
    return _QUERY.search(url) is not None or _PASSWORD.search(url) is not None or _TOKEN.search(url) is not None


def for_terminal(text: str, *, keep: str = "") -> str:
    r"""The text on one line, without control of the terminal; `keep="\n"` is for text whose lines are our own."""
    return visible(redacted(text), keep=keep)


def to_stderr(text: str) -> None:
    """Prints a line `videokd: TEXT` to the standard error."""
    print(f"videokd: {for_terminal(text)}", file=sys.stderr)


def for_csv_cell(cell: object) -> object:
    """A cell that no spreadsheet runs: text that begins as a formula gets an apostrophe before it; numbers stay.

    So does what follows a semicolon, at which spreadsheets of some languages part the cells.
    """
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    return _FORMULA.sub(r"\1'", visible(cell))


def for_html(text: str) -> str:
    """The text for the content of an HTML element or a quoted attribute."""
    return html.escape(for_terminal(text))


def for_markdown(text: str) -> str:
    """The text on one line that Markdown, and HTML in it, show as it is: no markup, no link, no picture."""
    text = html.escape(" ".join(for_terminal(text).split()), quote=False)
    text = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
    # Addresses become links by themselves on many sites.
    text = re.sub(r"(?i)\bwww\.", lambda found: found[0].replace(".", "&#46;"), text.replace("://", "&#58;//"))
    # A list, or the line under a heading, begins with these.
    text = re.sub(r"^(?=[-+](?:\s|$)|[-=]+$)", r"\\", text)
    return re.sub(r"^(\d+)(?=[.)](?:\s|$))", r"\1\\", text)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that can be read in any language, and has escapes for what nobody can see: exact when it is loaded."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # Outside of strings there is nothing unusual but line ends.
    return _UNUSUAL.sub(
        lambda found: json.dumps(found[0])[1:-1] if found[0] != "\n" and _is_hidden(found[0]) else found[0], text
    )


_UNUSUAL = re.compile(r"[^ -~]")
_NO_SHAPE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Fillers and variation selectors: printable by their category, and nothing to be seen."""
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

# A user's name alone may be a token; a path in which "//" became "/" is still a URL.
_USER = re.compile(r"(?i)([a-z][a-z0-9+.\-]+://)[^\s/]*@")
_PASSWORD = re.compile(r"(?i)([a-z][a-z0-9+.\-]+:/{1,2})[^\s/@:]+:(?!\d{1,5}(?:[/?#\s'\",;)]|$))\S*@")
_TOKEN = re.compile(r"(?i)://[^/]*:[^/]*@|https?://[^/]*@")
_QUERY = re.compile(r"(?i)([a-z][a-z0-9+.\-]+:/{1,2}[^\s?#'\"<>]*[?#])([^\s'\"<>]+)")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FORMULA = re.compile(r"((?:^|;)[\s'\"]*)(?=[=+\-@＝＋－＠])")  # full width, as Japanese keyboards write


def _is_hidden(char: str) -> bool:
    """Whether it does something else than being seen; spaces of any width are seen."""
    return (not char.isprintable() and unicodedata.category(char) != "Zs") or _NO_SHAPE.match(char) is not None


def _escaped(char: str) -> str:
    code = ord(char)
    if char in _SHORT:
        return _SHORT[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _without_values(query: str) -> str:
    """`a=1&b=2` as `a=***&b=***`; what follows the URL in a sentence stays."""
    kept = query.rstrip(").,;:")
    parts = re.split("([&;#])", kept)
    hidden = [part if part in "&;#" else re.sub(r"(=|^(?!.*=)).*", rf"\1{HIDDEN_SECRET}", part) for part in parts]
    return "".join(hidden) + query[len(kept) :]


def _secrets(url: str) -> set[str]:
    """Password and values of the query of each URL in a chain, as they are and decoded."""
    found: set[str] = set()
    for one in url.split("::"):
        address, *query = re.split("[?#&]", one.partition(":/")[2])
        user, at, _ = address.lstrip("/").rpartition("@")
        found |= {user.partition(":")[2] or user} if at else set()
        found |= {part.partition("=")[2] or part for part in query}
    found |= {unquote(part) for part in found}
    return {part for part in found if len(part) > 2}
