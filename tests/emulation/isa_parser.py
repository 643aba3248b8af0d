# SPDX-License-Identifier: Apache-2.0
"""Statements of AMD's pseudocode into functions of the variables: see `pseudocode`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.emulation.isa_numbers import N
from tests.emulation.isa_steps import (
    TYPE,
    Env,
    Node,
    Stop,
    access,
    applied,
    assign,
    binary,
    called,
    cast,
    element,
    joined,
    leave,
    literal,
    negated,
    part,
    returned,
)

__all__ = ["Parser"]

_TOKEN = re.compile(
    r"""\s*(?://[^\n]*|(
      \d+'[UIFB](?!\w)
    | \d+'-?(?:0x[0-9a-fA-F]+|\d+\.\d+|\d+)[UIFB]?
    | 0x[0-9a-fA-F]+U?L*
    | \d+\.\d+F?
    | \d+U?L*
    | [A-Za-z_]\w*
    | \*\*|<<|>>|<>|<=|>=|==|!=|&&|\|\||\+=|-=|\|=
    | [-+*/%&|^~!<>=?:;,.(){}\[\]]
    ))""",
    re.X,
)
_LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!=", "<>"),
    ("<", ">", "<=", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
    ("**",),
)


class Parser:
    """Statements into functions of the environment."""

    def __init__(self, text: str) -> None:
        self.tokens = [m[1] for m in _TOKEN.finditer(text) if m[1]]
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def expect(self, *wanted: str) -> str:
        found = self.next()
        if found not in wanted:
            raise SyntaxError(f"{found!r} where {wanted} is expected: {self.tokens}")
        return found

    def block(self, *ends: str) -> Node:
        """Statements up to one of the words, which is left."""
        found = []
        while self.peek() and self.peek() not in ends:
            if self.peek() == ";":
                self.next()
                continue
            found.append(self.statement())

        def run_all(env: Env) -> None:
            for one in found:
                one(env)

        return run_all

    def statement(self) -> Node:
        word = self.peek()
        if word == "if":
            return self._if()
        if word == "for":
            return self._for()
        if word == "declare":
            return self._declare()
        if word == "break":
            self.next()
            return leave
        if word == "return":
            self.next()
            value = self.expression()
            return lambda env: returned(value(env))
        if self.tokens[self.at + 1 : self.at + 3] == ["=", "lambda"]:
            return self._lambda()
        start = self.at
        target = self._targets() if word == "{" else self._target()
        if self.peek() not in ("=", "+=", "-=", "|="):
            self.at = start
            value = self.expression()  # the value of a lambda
            return lambda env: returned(value(env))
        sign, value = self.next(), self.expression()
        if sign == "=":
            return lambda env: target[1](env, value(env))
        return lambda env: target[1](env, binary(sign[0], target[0](env), value(env)))

    def _if(self) -> Node:
        arms: list[tuple[Node, Node]] = []
        otherwise: Node = lambda env: None  # noqa: E731
        self.next()
        while True:
            condition = self.expression()
            self.expect("then")
            arms.append((condition, self.block("elsif", "else", "endif")))
            word = self.expect("elsif", "else", "endif")
            if word == "else":
                otherwise = self.block("endif")
                word = self.expect("endif")
            if word == "endif":
                break

        def choose(env: Env) -> None:
            for condition, then in arms:
                if condition(env).value:
                    then(env)
                    return
            otherwise(env)

        return choose

    def _for(self) -> Node:
        self.next()
        name = self.next()
        self.expect("in")
        first = self.expression()
        self.expect(":")
        last = self.expression()
        self.expect("do")
        body = self.block("endfor")
        self.expect("endfor")

        def loop(env: Env) -> None:
            for i in range(first(env).value, last(env).value + 1):
                env[name] = N(i, "i", None)
                try:
                    body(env)
                except Stop as stop:
                    if stop.args:
                        raise
                    break

        return loop

    def _declare(self) -> Node:
        self.next()
        name = self.next()
        self.expect(":")
        width = int(self.next().partition("'")[0])
        if self.peek() == "[":
            self.next()
            count = int(self.next())
            self.expect("]")
            return lambda env: env.__setitem__(name, [N(0, "b", width)] * count)
        return lambda env: env.__setitem__(name, N(0, "b", width))

    def _lambda(self) -> Node:
        name = self.next()
        self.expect("=")
        self.expect("lambda")
        self.expect("(")
        names = [self.next()]
        while self.expect(",", ")") == ",":
            names.append(self.next())
        self.expect("(")
        body = self.block(")")
        self.expect(")")

        def define(env: Env) -> None:
            def call(*given: N) -> Any:
                try:
                    body({**env, **dict(zip(names, given, strict=True))})
                except Stop as stop:
                    return stop.args[0]

            env[name] = call

        return define

    def _targets(self) -> tuple[Node, Callable[[Env, N], None]]:
        """{ D1.u1, D0.u64 }: the last one gets the lowest bits."""
        self.expect("{")
        found = []
        while True:
            name, width = self.next(), 0
            self.expect(".")
            width = int(TYPE.match(self.next())[2])  # type: ignore[index]
            found.append((name, width))
            if self.expect(",", "}") == "}":
                break

        def put(env: Env, value: N) -> None:
            raw = value.bits
            for name, width in reversed(found):
                env[name] = N(raw & (1 << width) - 1, "b", width)
                raw >>= width

        return lambda env: None, put

    def _target(self) -> tuple[Node, Callable[[Env, N], None]]:
        start = self.at
        name = self.next()
        steps: list[tuple[str, Any, Any]] = []
        while self.peek() in (".", "["):
            if self.next() == ".":
                match = TYPE.match(self.next())
                assert match is not None
                steps.append(("type", match[1], int(match[2])))
                continue
            first = self.expression()
            if self.peek() == ":":
                self.next()
                steps.append(("slice", first, self.expression()))
            else:
                steps.append(("index", first, None))
            self.expect("]")
        end, self.at = self.at, start
        read = self._postfix() if self.peek() != "" else None
        self.at = end
        assert read is not None
        return read, functools.partial(assign, name, steps)

    def expression(self) -> Node:
        condition = self._level(0)
        if self.peek() != "?":
            return condition
        self.next()
        yes = self.expression()
        self.expect(":")
        no = self.expression()
        return lambda env: yes(env) if condition(env).value else no(env)

    def _level(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._unary()
        left = self._level(level + 1)
        while self.peek() in _LEVELS[level]:
            sign, right = self.next(), self._level(level + 1)
            left = functools.partial(applied, sign, left, right)
        return left

    def _unary(self) -> Node:
        if self.peek() in ("-", "+", "~", "!"):
            sign, value = self.next(), self._unary()
            return lambda env: negated(sign, value(env))
        return self._postfix()

    def _postfix(self) -> Node:
        value = self._primary()
        while self.peek() in (".", "["):
            if self.next() == ".":
                match = TYPE.match(self.next())
                assert match is not None
                value = functools.partial(access, value, match[1], int(match[2]))
                continue
            first = self.expression()
            if self.peek() == ":":
                self.next()
                value = functools.partial(part, value, first, self.expression())
            else:
                value = functools.partial(element, value, first)
            self.expect("]")
        return value

    def _primary(self) -> Node:
        word = self.next()
        if word == "(":
            inside = self.expression()
            self.expect(")")
            return inside
        if word == "{":
            parts = list(self._list("}"))
            return lambda env: joined([part(env) for part in parts])
        if match := re.match(r"(\d+)'([UIFB])$", word):
            self.expect("(")
            inside = self.expression()
            self.expect(")")
            return functools.partial(cast, inside, match[2].lower(), int(match[1]))
        if word[0].isdigit():
            number = literal(word)
            return lambda env: number
        if self.peek() == "(":
            self.next()
            given = list(self._list(")"))
            return lambda env: called(env, word, [one(env) for one in given])
        return lambda env: env[word]

    def _list(self, end: str) -> Iterator[Node]:
        if self.peek() == end:
            self.next()
            return
        yield self.expression()
        while self.expect(",", end) == ",":
            yield self.expression()
