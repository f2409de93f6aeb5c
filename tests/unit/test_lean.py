"""lean.NamedTuple does what typing.NamedTuple does, and lean.IntEnum and lean.StrEnum what those of enum do."""

from __future__ import annotations

import copy
import enum
import json
import pickle
import typing
from typing import Any

import pytest

from vmfilter import lean

lean_tuple: Any = lean.NamedTuple  # not what a type checker takes it for


class Ours(lean_tuple):  # type: ignore[misc]
    """A range."""

    start: int
    end: int = 8
    name: str = ""

    @property
    def size(self) -> int:
        return int(self.end - self.start)


class Theirs(typing.NamedTuple):
    start: int
    end: int = 8
    name: str = ""

    @property
    def size(self) -> int:
        return self.end - self.start


def behaviour(kind: Any) -> list[Any]:
    one = kind(1, name="x")
    first, *rest = one
    match one:
        case kind(start, end):
            matched = start, end
    return [
        tuple(one),
        (one.start, one.end, one.name, one.size),
        (first, rest),
        matched,
        repr(one).partition("(")[2],
        one._replace(end=3),
        one._asdict(),
        kind._make([1, 2, "y"]),
        kind._fields,
        kind._field_defaults,
        one == kind(1, 8, "x"),
        hash(one),
        one < kind(2),
        isinstance(one, tuple),
        pickle.loads(pickle.dumps(one)),
        vars(kind).get("__slots__"),
    ]


def test_a_named_tuple_is_as_that_of_typing() -> None:
    assert behaviour(Ours) == behaviour(Theirs)
    assert Ours.__doc__ == "A range."
    assert (Ours.__module__, Ours.__qualname__) == (__name__, "Ours")


@pytest.mark.parametrize(
    ("values", "named"), [([], {}), ([1, 2, 3, 4], {}), ([1], {"start": 1}), ([1], {"size": 1}), ([], {"end": 1})]
)
def test_wrong_values_are_a_type_error(values: list[int], named: dict[str, int]) -> None:
    for kind in Ours, Theirs:
        with pytest.raises(TypeError):
            kind(*values, **named)


def test_a_member_cannot_be_changed_and_no_other_be_added() -> None:
    for name in "start", "other":
        with pytest.raises(AttributeError):
            setattr(Ours(1), name, 2)


lean_int_enum: Any = lean.IntEnum
lean_str_enum: Any = lean.StrEnum


class OurNumbers(lean_int_enum):  # type: ignore[misc]
    """Numbers."""

    NONE = 0
    ONE = 1


class TheirNumbers(enum.IntEnum):
    """Numbers."""

    NONE = 0
    ONE = 1


class OurTexts(lean_str_enum):  # type: ignore[misc]
    A = "a b"
    B = ""


class TheirTexts(enum.StrEnum):
    A = "a b"
    B = ""


def behaviour_of_members(kind: Any) -> list[Any]:
    one = next(iter(kind))
    return [
        [(member.name, member.value, type(member.value)) for member in kind],
        list(kind.__members__),
        len(kind),
        one.value in kind.__members__.values(),
        kind(one.value) is one,
        kind(one) is one,
        kind[one.name] is one,
        isinstance(one, kind),
        {one: 1}[one.value],
        f"{one} {one!s:>5} {one!r}".replace("Their", "Our"),
        json.dumps({"member": one, "list": list(kind)}),
        [copied is one for copied in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one)))],
        kind.__doc__ if kind.__name__.endswith("Numbers") else None,
    ]


@pytest.mark.parametrize(("ours", "theirs"), [(OurNumbers, TheirNumbers), (OurTexts, TheirTexts)])
def test_members_are_as_those_of_enum(ours: Any, theirs: Any) -> None:
    assert behaviour_of_members(ours) == behaviour_of_members(theirs)


def test_numbers_with_names_count_as_numbers() -> None:
    for kind in OurNumbers, TheirNumbers:
        assert [kind.ONE + 1, b"%c" % kind.ONE, f"{kind.ONE:02d}", bytes([kind.ONE])] == [2, b"\1", "01", b"\1"]


def test_a_value_or_name_of_no_member_is_refused() -> None:
    for kind, value in (OurNumbers, 2), (TheirNumbers, 2), (OurTexts, "c"), (TheirTexts, "c"):
        with pytest.raises(ValueError, match="is not a valid"):
            kind(value)
        with pytest.raises(KeyError):
            kind["C"]
