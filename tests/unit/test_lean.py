"""lean.NamedTuple does what typing.NamedTuple does."""

from __future__ import annotations

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
