"""What this package uses of typing, enum, collections, contextlib, functools and others, without importing them.

typing and what it does for each NamedTuple take a third of the time of all imports: it compiles every annotation. enum
and two classes that it makes take a twelfth of the time that a small dump takes, its codec aside. The others bring more
modules, for threads and imports that they manage, or make dozens of classes; what is used of them is in C, or small. A
type checker sees the originals.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import defaultdict as defaultdict
    from collections import deque as deque
    from collections.abc import Sequence as Sequence
    from contextlib import closing as closing
    from contextlib import nullcontext as nullcontext
    from contextlib import suppress as suppress
    from enum import IntEnum as IntEnum
    from enum import StrEnum as StrEnum
    from functools import cached_property as cached_property
    from functools import partial as partial
    from heapq import heappop as heappop
    from heapq import heappush as heappush
    from importlib import import_module as import_module
    from operator import add as add
    from operator import gt as gt
    from operator import itemgetter as itemgetter
    from operator import lt as lt
    from operator import ne as ne
    from queue import SimpleQueue as SimpleQueue
    from threading import Lock as Lock
    from types import SimpleNamespace as SimpleNamespace
    from typing import Generic as Generic
    from typing import NamedTuple as NamedTuple
    from typing import Protocol as Protocol
    from typing import TypeVar as TypeVar
    from typing import overload as overload
else:
    import sys
    from _collections import _tuplegetter as member
    from _collections import defaultdict, deque  # noqa: F401
    from _collections_abc import Sequence  # noqa: F401
    from _functools import partial  # noqa: F401
    from _heapq import heappop, heappush  # noqa: F401
    from _operator import add, gt, itemgetter, lt, ne  # noqa: F401
    from _queue import SimpleQueue  # noqa: F401
    from _thread import allocate_lock as Lock  # noqa: F401, N812
    from itertools import repeat

    def TypeVar(name, **_):  # noqa: N802
        """Return the name: a variable is only for a type checker."""
        return name

    if not {"array", "collections"} & sys.modules.keys():
        # array asks for collections.abc, and takes what _collections_abc has too: collections need not be imported.
        sys.modules["collections"] = sys.modules["collections.abc"] = sys.modules["_collections_abc"]
        try:
            import array  # noqa: F401
        finally:
            del sys.modules["collections"], sys.modules["collections.abc"]

    SimpleNamespace = type(sys.implementation)

    class Protocol:
        """A class of which nothing is made."""

    class Generic:
        """A class whose parameters are only for a type checker."""

        def __class_getitem__(cls, _):
            return cls

    def overload(function):
        """Return the function: a definition without this decorator follows."""
        return function

    class _Record(tuple):
        __slots__ = ()

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changes):
            return type(self)(**self._asdict() | changes)

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

    def _with_defaults(record, values, named):
        """Return the values of all members. Raises TypeError unless they are complete, and each is given once."""
        name, fields, defaults = record.__name__, record._fields, record._field_defaults
        if len(values) > len(fields):
            raise TypeError(f"{name}() takes {len(fields)} values, not {len(values)}")
        rest = fields[len(values) :]
        if wrong := [field for field in named if field not in rest]:
            raise TypeError(f"{name}(): {', '.join(wrong)}: unknown, or given twice")
        given = defaults | named
        if missing := [field for field in rest if field not in given]:
            raise TypeError(f"{name}(): {', '.join(missing)}: not given")
        return (*values, *map(given.get, rest))

    def _record(name, members):
        fields = tuple(members.get("__annotations__", ()))
        count, new = len(fields), tuple.__new__
        defaults = [field for field in fields if field in members]

        def __new__(cls, *values, **named):  # noqa: N807
            return new(cls, values if len(values) == count and not named else _with_defaults(cls, values, named))

        members["_field_defaults"] = {field: members.pop(field) for field in defaults}
        members.update(zip(fields, map(member, range(count), repeat("")), strict=True))
        members.update(__new__=__new__, __slots__=(), _fields=fields, __match_args__=fields)
        return type(name, (_Record,), members)

    class _NamedTuple(type):
        def __new__(cls, name, bases, members):
            return _record(name, members) if bases else type.__new__(cls, name, bases, members)

    class NamedTuple(metaclass=_NamedTuple):
        """A tuple whose members have names, as typing.NamedTuple."""

    class _Enumeration(type):
        """The type of a class whose public constants are its members."""

        def __new__(cls, name, bases, contents):
            constants = {key: value for key, value in contents.items() if not key.startswith("_")}
            new = type.__new__(cls, name, bases, {key: contents[key] for key in contents if key not in constants})
            new.__members__, new._by_value = {}, {}
            for key, value in constants.items():
                one = bases[0].__new__(new, value)  # an int or a str
                one.name, one.value = key, value
                setattr(new, key, one)
                new.__members__[key] = new._by_value[value] = one
            return new

        def __call__(cls, value):
            if value not in cls._by_value:
                raise ValueError(f"{value!r} is not a valid {cls.__name__}")
            return cls._by_value[value]

        def __getitem__(cls, name):
            return cls.__members__[name]

        def __iter__(cls):
            return iter(cls.__members__.values())

        def __len__(cls):
            return len(cls.__members__)

        def __contains__(cls, value):
            return value in cls._by_value

    class _Member:
        """What all members have."""

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __reduce__(self):
            return type(self), (self.value,)

    class IntEnum(int, _Member, metaclass=_Enumeration):
        """Integers with names, as enum.IntEnum."""

        __repr__, __str__ = _Member.__repr__, int.__repr__

    class StrEnum(str, _Member, metaclass=_Enumeration):
        """Strings with names, as enum.StrEnum."""

        __repr__ = _Member.__repr__

    class cached_property:  # noqa: N801
        """See functools: the value takes the place of the property."""

        def __init__(self, function):
            self.func, self.__doc__ = function, function.__doc__

        def __set_name__(self, owner, name):
            self._name = name

        def __get__(self, one, owner=None):
            if one is None:
                return self
            value = one.__dict__[self._name] = self.func(one)
            return value

    class suppress:  # noqa: N801
        """See contextlib."""

        def __init__(self, *kinds):
            self._kinds = kinds

        def __enter__(self):
            pass

        def __exit__(self, kind, e, traceback):
            return kind is not None and issubclass(kind, self._kinds)

    class nullcontext:  # noqa: N801
        """See contextlib."""

        def __init__(self, value=None):
            self._value = value

        def __enter__(self):
            return self._value

        def __exit__(self, kind, e, traceback):
            pass

    class closing(nullcontext):  # noqa: N801
        """See contextlib."""

        def __exit__(self, kind, e, traceback):
            self._value.close()

    def import_module(name):
        """Import a module, and return it."""
        __import__(name)
        return sys.modules[name]
