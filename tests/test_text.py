import csv
import io
import json
import unicodedata

import pytest
from rich.console import Console

from videokd import machine
from videokd.progress import bar
from videokd.report.tables import sectioned_table, terminal_table
from videokd.text import (
    for_csv_cell,
    for_html,
    for_markdown,
    for_terminal,
    has_secret,
    redacted,
    to_json,
    to_stderr,
    visible,
)

HOSTILE = [
    "\x1b[31mred\x1b[0m",  # an escape sequence
    "\x9b31mred",  # the same with the 8-bit introducer
    "\x1b]0;title\x07",
    "back\x08space\rreturn\x7fdelete",
    "one\nvideokd: error: two",
    "line\u2028paragraph\u2029\x85\x0b\x0c",
    "\u202egpj.exe",  # right to left from here on
    "\u2066isolated\u2069\u200e\u200f\u061c",
    "zero\u200bwidth\u2060\ufeff\u00ad",
    "tags\U000e0041\U000e0001",
    "variation\ufe0f\U000e0100 filler\u3164\u115f",
    "file\udcff name",  # a byte of a file name that is not UTF-8
    "\x00nul",
]


def is_safe(text: str) -> bool:
    """Whether a text has no character that is not seen."""
    return all(char == " " or char.isprintable() for char in text)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_nobody_can_see_becomes_an_escape_and_nothing_is_lost(name: str) -> None:
    for shown in (visible(name), for_terminal(name), for_html(name), for_csv_cell(name)):
        assert is_safe(str(shown))
        assert "\\" in str(shown)
        shown.encode()  # type: ignore[attr-defined]  # a lone surrogate would raise
    assert visible(name).encode("ascii").decode("unicode_escape") == name


def test_escapes_are_those_of_python() -> None:
    assert visible("a\x1b\n\t\u202e\U000e0001") == r"a\x1b\n\t\u202e\U000e0001"
    assert visible("日本語 naïve\u3000\u00a0🚗 C:\\videos") == "日本語 naïve\u3000\u00a0🚗 C:\\videos"
    assert visible("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"


def test_every_control_and_format_character_is_hidden() -> None:
    wrong = [
        code
        for code in range(0x110000)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and visible(chr(code)) == chr(code)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", [*HOSTILE, "[red]x[/red]", ":car:", "[link=https://evil]x[/link]"])
def test_a_name_stands_on_the_terminal_as_it_is(name: str) -> None:
    screen = machine.terminal()
    screen.file = said = io.StringIO()
    screen.print(f"skipped: {name}")
    screen.print(terminal_table((name, "b"), [(name, "1")], title=name))
    screen.print(sectioned_table((name,), {name: [(name,)]}))
    lines = said.getvalue().splitlines()
    assert lines[0] == f"skipped: {visible(name)}"
    assert all(is_safe(line) for line in said.getvalue().split("\n"))
    assert sum(visible(name) in line for line in lines) == 7


def test_a_bar_shows_a_name_as_it_is() -> None:
    said = io.StringIO()
    screen = Console(file=said, force_terminal=True, width=120, color_system=None)
    with bar(screen) as progress:
        progress.add_task("[red]a\x9b\nb", total=1, detail="c\u202e")
    assert r"[red]a\x9b\nb" in said.getvalue()
    assert r"c\u202e" in said.getvalue()


def test_a_line_on_stderr_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    to_stderr("error: no class 'a\x1b[2J'\nvideokd: all is well, see https://me:secret@host/x?token=abc")
    assert capsys.readouterr().err == (
        r"videokd: error: no class 'a\x1b[2J'\nvideokd: all is well, see https://***@host/x?token=***" + "\n"
    )


@pytest.mark.parametrize(
    "formula",
    ["=1+1", "+1+1", "-1+1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n=1", "＝1", "＋1", "－1", "＠x", "'=1", '"=1',
     "\u00a0=1", "\ufeff=1", "a;=1", "=cmd|' /C calc'!A0", "-cmd", "- 1"],
)  # fmt: skip
def test_no_cell_begins_as_a_formula(formula: str) -> None:
    text = io.StringIO()
    csv.writer(text).writerow([for_csv_cell(formula)])
    for delimiter in ",;\t":
        for cell in next(csv.reader([text.getvalue().strip("\r\n")], delimiter=delimiter)):
            assert not cell.strip(' "\u00a0').startswith(tuple("=+-@＝＋－＠\t\r"))


@pytest.mark.parametrize("number", [-0.5, 3, -2, "-0.5", "+1", "-1e-05", "7", ".5", None, True])
def test_numbers_in_a_csv_stay_numbers(number: object) -> None:
    assert for_csv_cell(number) == number


def test_markdown_shows_markup_as_text() -> None:
    assert for_markdown("a|b`c*d_e~f#g$h$") == r"a\|b\`c\*d\_e\~f\#g\$h\$"
    assert for_markdown("<img src=x onerror=alert(1)>") == "&lt;img src=x onerror=alert(1)&gt;"
    assert for_markdown("[x](javascript:alert(1))") == r"\[x\](javascript:alert(1))"
    assert for_markdown("see https://evil.example") == "see https&#58;//evil.example"
    assert for_markdown("www.evil.example") == "www&#46;evil.example"
    assert for_markdown("a\n\n# b") == r"a\\n\\n\# b"
    assert [for_markdown(line) for line in ("- a", "+ a", "1. a", "2) a", "---", "===", "> a")] == [
        r"\- a", r"\+ a", r"1\. a", r"2\) a", r"\---", r"\===", "&gt; a",
    ]  # fmt: skip
    assert for_markdown("-0.5") == "-0.5"
    assert for_markdown("1.5 is more") == "1.5 is more"


def test_json_is_exact_and_has_nothing_hidden() -> None:
    value = {name: [name, "日本", -0.5] for name in HOSTILE}
    text = to_json(value, indent=1)
    assert json.loads(text) == value
    assert all(is_safe(line) for line in text.split("\n"))
    assert "日本" in text


SECRETS = [
    "https://user:s3cret@host/set",
    "https://user:a@s3cret@host:8080/set",
    "https://user:s3cret/x@host/set",
    "https://user:it's3cret@host/set",
    "HTTPS://user:s3cret@host",
    "https://s3cret@host/set",
    "https:/user:s3cret@host/set",  # as a Path writes it
    "simplecache::https://user:s3cret@host/set",
    "zip://a::ftp://user:s3cret@host/a.zip",
    "https://user:x::s3cret@host/set",
    "https://host/set?X-Amz-Signature=s3cret&v=s3cret",
    "https://host/set?s3cret",
    "https://host/set?token=s3cret#token=s3cret",
    "https://host/set#s3cret",
    "abfs://c@account.dfs.core.windows.net/set?sv=2024&sig=s3cret%3D",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_secret_in_a_url_is_not_shown(url: str) -> None:
    for text in (url, f"404, message='Not Found', url=URL('{url}')", f"({url}).", f'"{url}" {url}'):
        assert "s3cret" not in redacted(text)
        assert "***" in redacted(text)
    assert has_secret(url)


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/set/index.jsonl", "https://host:8080/a@b/x", "sftp://me@host/set", "hf://datasets/me/set@main/a",
     "memory://bucket/set", "file:/home/a@b.mp4", "C:/videos@home/x.mp4", "/data/a@b?c#d.mp4", "1:30 to 2:00 @ home"],
)  # fmt: skip
def test_an_address_without_a_secret_is_taken(url: str) -> None:
    assert not has_secret(url)
    assert redacted(url) == url.replace("me@host", "***@host")


def test_the_secrets_of_a_url_are_taken_out_of_any_sentence() -> None:
    url = "ftp://me:se%40cret@host/x?sig=abcdef"
    assert redacted("530 login of me with se@cret failed, se%40cret, abcdef", url) == (
        "530 login of me with *** failed, ***, ***"
    )
