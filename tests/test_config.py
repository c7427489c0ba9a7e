from dataclasses import dataclass, field
from pathlib import Path

import pytest

from videokd.config import differing_fields, from_plain, import_file, nearest, to_plain


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int] = (3, 4)
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    parts: dict[str, Inner] = field(default_factory=dict)
    rate: float = 0.1


def test_a_configuration_comes_back_equal() -> None:
    config = Outer(parts={"a": Inner(size=(1, 2)), "b": Inner(name="x")}, rate=1e-3)
    plain = to_plain(config)
    assert plain["parts"]["a"] == {"type": f"{__name__}:Inner", "size": [1, 2], "name": None}
    assert from_plain(plain, trust=[__name__]) == config


def test_a_class_of_a_recipe_file_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    a: int = 1\n")
    config = import_file(file).Mine(a=5)
    assert from_plain(to_plain(config), trust=()) == config  # the process ran the file
    assert import_file(file) is import_file(file)


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Inner has no field 'sise'; did you mean 'size'\?"):
        from_plain({"type": f"{__name__}:Inner", "sise": [1, 2]}, trust=[__name__])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("videokd.nowhere:Thing", "not a configuration class of videokd"),
        ("videokd.config:Nothing", "not a configuration class of videokd"),
        ("os:getcwd", "not a configuration dataclass"),
        ("/no/such/file.py:Thing", "no Python file"),
    ],
)
def test_a_class_that_is_not_there_is_named(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain({"type": address}, trust=["os", "/no/such/file.py"])


@pytest.mark.parametrize("value", [object(), [1], {1: 2}, {"type": 3}])
def test_only_plain_values_are_taken(value: object) -> None:
    with pytest.raises(ValueError, match="configuration"):
        to_plain(value)


def test_data_from_others_run_no_code(tmp_path: Path) -> None:
    file = tmp_path / "evil.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n@dataclass\nclass X: ...\n"
    )
    for address in (f"{file}:X", "this:X"):
        with pytest.raises(ValueError, match=f"not part of videokd.*add --trust {address[:-2]} "):
            from_plain({"type": address}, trust=())
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="add --trust"):
        from_plain(to_plain(Inner()), trust=())  # of a module that is imported


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"InputSpec can't be made of what is written: .*'size'"):
        from_plain({"type": "videokd.contracts:InputSpec", "frames": 3}, trust=())


def test_differing_fields_are_named_by_their_path() -> None:
    one, other = to_plain(Outer(parts={"a": Inner()})), to_plain(Outer(parts={"a": Inner(name="x")}, rate=0.2))
    assert differing_fields(one, other) == {"parts.a.name": (None, "x"), "rate": (0.1, 0.2)}
    assert differing_fields(one, one) == {}


def test_nearest_lists_all_names_when_none_is_near() -> None:
    assert nearest("zzz", ["clip", "frames"]) == "; there are: clip, frames"


def test_a_broken_recipe_file_is_not_kept_half_imported(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("a = 1 / 0")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            import_file(file)
