"""Read the pickles that the CIFAR archives are made of, without a pickle machine.

A pickle is a program that can call anything. This reader runs the few instructions that build numbers, strings,
lists, tuples, dicts and numpy arrays; it imports nothing and calls nothing, so that there is nothing to be talked into.
From the standard library it takes `pickletools.genops`, which parts a pickle into instructions and runs none.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from prunus.errors import DataError

_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_NDARRAY = "numpy ndarray"
_DTYPE = "numpy dtype"
_ELEMENTS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"})
_MAX_AXES = 8


@dataclass
class PickledArray:
    """A numpy array in a pickle; `array` is None until the instruction that fills it has come."""

    array: np.ndarray | None = None


@dataclass
class _Dtype:
    code: str
    order: str = "="


@dataclass(frozen=True)
class _Global:
    """The name of something a pickle would import. It stays a name."""

    name: str


class _Refused(Exception):
    """The pickle holds something that this reader does not build."""


@dataclass
class _Machine:
    stack: list[object] = field(default_factory=list)
    marked: list[list[object]] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[object]:
        if len(self.stack) < count:
            raise _Refused("it takes more values than it made")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def pop_to_mark(self) -> list[object]:
        if not self.marked:
            raise _Refused("it closes a list that it did not open")
        taken, self.stack = self.stack, self.marked.pop()
        return taken

    def top(self) -> object:
        if not self.stack:
            raise _Refused("it takes more values than it made")
        return self.stack[-1]


def read_plain_pickle(content: bytes) -> object:
    """Rebuild the value that a pickle of plain containers and numeric arrays describes; nothing in it is executed.

    Strings of Python 2 come out as bytes, arrays as `PickledArray`. Raises DataError for anything else in it.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickletools, about odd escapes in a string: such bytes are data here
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name == "STOP":
                    return machine.pop(1)[0]
                step = _STEPS.get(opcode.name)
                if step is None:
                    raise _Refused(f"the instruction {opcode.name} is not one that plain data needs")
                step(machine, argument)
    except _Refused as error:
        raise DataError(f"a pickle that is not plain data: {error}") from error
    except (ValueError, OverflowError) as error:  # what genops raises on bytes that are no pickle
        raise DataError(f"a damaged pickle: {error}") from error
    raise DataError("a damaged pickle: it has no end")


def _push(machine: _Machine, argument: object) -> None:
    machine.push(argument)


def _push_python2_string(machine: _Machine, argument: object) -> None:
    assert isinstance(argument, str)
    machine.push(argument.encode("latin-1"))  # genops decodes as latin-1, which loses nothing


def _pushes(make: Callable[[], object]) -> _Step:
    return lambda machine, _: machine.push(make())


def _tuple_of(count: int) -> _Step:
    return lambda machine, _: machine.push(tuple(machine.pop(count)))


def _mark(machine: _Machine, _: object) -> None:
    machine.marked.append(machine.stack)
    machine.stack = []


def _extend(machine: _Machine, values: list[object]) -> None:
    target = machine.top()
    if not isinstance(target, list):
        raise _Refused("it appends to something that is not a list")
    target.extend(values)


def _set_items(machine: _Machine, values: list[object]) -> None:
    target = machine.top()
    if not isinstance(target, dict) or len(values) % 2:
        raise _Refused("it sets an item of something that is not a dict")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | bytes | int):  # the hash of nested tuples can take for ever
            raise _Refused("a dict has a key that is neither a string nor a number")
        target[key] = value


def _store(machine: _Machine, argument: object) -> None:
    # MEMOIZE counts by itself, the PUT instructions name their place.
    place = argument if isinstance(argument, int) else len(machine.memo)
    machine.memo[place] = machine.top()


def _fetch(machine: _Machine, argument: object) -> None:
    if not isinstance(argument, int) or argument not in machine.memo:
        raise _Refused("it fetches a value that it did not store")
    machine.push(machine.memo[argument])


def _stack_global(machine: _Machine, _: object) -> None:
    module, name = machine.pop(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Refused("it imports something that has no name")
    machine.push(_Global(f"{module} {name}"))


def _call(machine: _Machine, _: object) -> None:
    """In place of a call: note that an array or a dtype begins here."""
    function, arguments = machine.pop(2)
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise _Refused("it calls something that is not a function")
    if function.name in _RECONSTRUCT and arguments[:1] == (_Global(_NDARRAY),):
        machine.push(PickledArray())
    elif function.name == _DTYPE and arguments:
        code = _text(arguments[0])
        if code not in _ELEMENTS:
            raise _Refused(f"an array has elements of kind {code!r:.40}, not numbers")
        machine.push(_Dtype(code))
    else:
        raise _Refused(f"it wants to call {function.name!r:.80}")


def _build(machine: _Machine, _: object) -> None:
    """In place of setting an object's state: fill an array or the byte order of a dtype."""
    (state,) = machine.pop(1)
    target = machine.top()
    if isinstance(target, _Dtype) and isinstance(state, tuple) and len(state) >= 2:
        target.order = _text(state[1])
        if target.order not in ("<", ">", "|", "="):
            raise _Refused("a dtype has no byte order")
    elif isinstance(target, PickledArray) and isinstance(state, tuple) and len(state) == 5:
        target.array = _array(*state[1:])
    else:
        raise _Refused("it sets the state of something that is neither an array nor a dtype")


def _text(value: object) -> str:
    # Only strings are ever compared or shown: comparing or printing containers that share parts can take for ever.
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else f"a {type(value).__name__}"


def _array(shape: object, dtype: object, fortran: object, content: object) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
        raise _Refused("an array is not made of numbers")
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MAX_AXES
        or not all(isinstance(size, int) and size >= 0 for size in shape)
    ):
        raise _Refused("an array has no proper shape")
    element = np.dtype(dtype.code if dtype.order == "|" else dtype.order + dtype.code)
    if math.prod(shape) * element.itemsize != len(content):
        raise _Refused(f"an array of shape {shape!r:.40} and kind {dtype.code} has {len(content)} bytes")
    return np.frombuffer(content, dtype=element).reshape(shape, order="F" if fortran else "C")


_Step = Callable[[_Machine, object], None]
_CONSTANTS = (
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8"
)
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_CONSTANTS.split(), _push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _push_python2_string),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _store),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _fetch),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    "NONE": _pushes(lambda: None),
    "NEWTRUE": _pushes(lambda: True),
    "NEWFALSE": _pushes(lambda: False),
    "EMPTY_DICT": _pushes(dict),
    "EMPTY_LIST": _pushes(list),
    "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "MARK": _mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "APPEND": lambda machine, _: _extend(machine, machine.pop(1)),
    "APPENDS": lambda machine, _: _extend(machine, machine.pop_to_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.pop(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_to_mark()),
    "GLOBAL": lambda machine, argument: machine.push(_Global(str(argument))),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _call,
    "BUILD": _build,
}
