"""Reads pickles as data. Nothing in them is imported, called or given to anything that runs.

A pickle is a list of instructions for a stack. Those that put together numbers, text, lists and dictionaries are
followed; where they would import a class, call it or set attributes, a Placeholder keeps the name and the arguments.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from fmcefast.errors import printable

_MARK = object()
_SETS = ("__builtin__.set", "__builtin__.frozenset", "builtins.set", "builtins.frozenset")
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(frozen=True)
class Global:
    """A class or a function, by its name alone: module.name."""

    name: str


class Placeholder(dict):
    """An object that was not made: the `name` of its class or of the function that makes it, the `arguments`, and the
    `state` it would have been given. Items that were set on it, as on a dictionary, are its own."""

    def __init__(self, name: str, arguments: tuple[Any, ...]):
        super().__init__()
        self.name = name
        self.arguments = arguments
        self.state: Any = None


def read_pickle(stream: BinaryIO, persistent: Callable[[Any], Any]) -> Any:
    """What the pickle that begins here holds; the stream is then at its end.

    persistent: makes an object of a persistent identifier. Of dictionaries, only items whose key is a string are kept,
    under their `printable` names; sets become lists. Raises ValueError for what is no pickle, or not a whole one.
    """
    machine = _Machine(persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.follow(opcode.name, argument)
        (content,) = machine.stack
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its instructions make no sense ({type(error).__name__}: {error})") from error
    return content


class _Machine:
    def __init__(self, persistent: Callable[[Any], Any]):
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._persistent = persistent

    def follow(self, opcode: str, argument: Any) -> None:
        """One instruction, under its name in `pickletools`."""
        stack = self.stack
        match opcode:
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(_CONSTANTS[opcode])
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                stack.append(_MARK)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode[-1]))]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "LIST" | "FROZENSET":
                stack.append(self._since_mark())
            case "DICT":
                items = self._since_mark()
                stack.append({})
                self._set_items(items)
            case "APPEND":
                self._append([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._append(self._since_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._since_mark())
            case "GLOBAL":
                stack.append(Global(printable(argument.replace(" ", ".", 1))))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(Global(printable(".".join((module, name)))))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Global(f"copyreg extension {argument}"))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                self._hold_place(called, arguments)
            case "NEWOBJ_EX":
                _, arguments, called = stack.pop(), stack.pop(), stack.pop()
                self._hold_place(called, arguments)
            case "INST":
                self._hold_place(Global(printable(argument.replace(" ", ".", 1))), tuple(self._since_mark()))
            case "OBJ":
                called, *arguments = self._since_mark()
                self._hold_place(called, tuple(arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Placeholder):
                    stack[-1].state = state
            case "PERSID":
                stack.append(self._persistent(argument))
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError("it needs buffers that are not in the file")
            case _:  # numbers and text
                stack.append(argument)

    def _since_mark(self) -> list[Any]:
        stack = self.stack
        place = len(stack) - 1
        while stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError("no mark")
        items = stack[place + 1 :]
        del stack[place:]
        return items

    def _append(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, list):
            into.extend(items)
        elif not isinstance(into, Placeholder):
            raise TypeError("appends to what is no list")

    def _set_items(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if not isinstance(into, dict):
            raise TypeError("sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):  # hashing anything else may take for ever
                into[printable(key)] = value

    def _hold_place(self, called: Any, arguments: Any) -> None:
        if not isinstance(called, Global) or not isinstance(arguments, tuple):
            raise TypeError("calls what is no function")
        is_set = called.name in _SETS and arguments and isinstance(arguments[0], list)
        self.stack.append(arguments[0] if is_set else Placeholder(called.name, arguments))
