"""The arithmetic behind the `calculate` tools, without `eval`.

Python decides what an expression is worth and how it complains, as in τ²-bench; only a power too large to print is refused
instead of computed.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def evaluate(expression: str) -> str:
    """The value as text, rounded to two decimals.

    Raises:
        Exception: Python's own (ValueError, SyntaxError, ZeroDivisionError, TypeError, …) for what is not arithmetic.
    """
    if not all(character in "0123456789+-*/(). " for character in expression):
        raise ValueError("Invalid characters in expression")
    if not isinstance(expression, str):
        raise TypeError("eval() arg 1 must be a string, bytes or code object")
    tree = ast.parse(expression.lstrip(" "), filename="<string>", mode="eval")
    return str(round(float(_value(tree.body)), 2))


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        return _power(left, right) if isinstance(node.op, ast.Pow) else _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.Call):  # `2(3)`
        raise TypeError(f"'{type(_value(node.func)).__name__}' object is not callable")
    if isinstance(node, ast.Tuple):  # `()`
        return ()
    raise ValueError(f"Not arithmetic: {ast.unparse(node)}")


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and exponent * math.log2(abs(base)) > 100_000:
        raise OverflowError("int too large to convert to float")
    return base**exponent
