"""Check symbolic sizes in an exported program, such as "Mul(Integer(2), Symbol('s0', integer=True))".

torch hands these strings to sympy, which evaluates them as Python.  They are parsed here first, without being run, and
only arithmetic of a few sizes is let through.
"""

from __future__ import annotations

import ast
import re

SYMBOL = re.compile(r"s\d{1,6}")
"""Sizes known from the inputs.  Names such as u0 stand for sizes that depend on values, which are not read."""

_CALLS = frozenset(
    (
        *("Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv"),
        *("CeilToInt", "FloorToInt", "TruncToInt", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "Max", "Min", "Where"),
        *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan"),
        *("StrictGreaterThan", "GreaterThan", "And", "Or", "Not"),
    )
)
_ASSUMPTIONS = frozenset(("positive", "integer", "nonnegative", "finite", "real", "zero", "size"))
_OPERATORS = (
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.Invert, ast.BitAnd, ast.BitOr),
    *(ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq),
)
_LONGEST = 4096
_PARTS = 200
_DEGREE = 12


def check_expression(text: str) -> str:
    """Return an expression that is arithmetic of sizes.  Raises ValueError if it is anything else, or too large."""
    if len(text) > _LONGEST or not text.isascii():
        raise ValueError(f"a size of {len(text)} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"a size {text[:80]!r}") from error
    if sum(1 for _ in ast.walk(tree)) > _PARTS * 3:
        raise ValueError(f"a size of too many parts, {text[:80]!r}")
    if _degree(tree) > _DEGREE:
        raise ValueError(f"a power in the size {text[:80]!r}")
    return text.strip()


def _degree(tree: ast.expr) -> int:
    """Return how many sizes are multiplied with each other at most: 2 for h · w + 1.

    Raises ValueError for a part that is no arithmetic.
    """
    match tree:
        case ast.Constant(value=bool() | int() | float() as value):
            if abs(value) >= 2**63:
                raise ValueError(f"the number {value} in a size")
            return 0
        case ast.Name(id=name) if SYMBOL.fullmatch(name) or name in ("true", "false"):
            return 1
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)], keywords=keywords):
            plain = all(k.arg in _ASSUMPTIONS and isinstance(k.value, ast.Constant) for k in keywords)
            if SYMBOL.fullmatch(name) and plain and all(isinstance(k.value.value, bool) for k in keywords):  # type: ignore[attr-defined]
                return 1
        case ast.Call(func=ast.Name(id="Pow"), args=[base, power], keywords=[]):
            return _degree(base) * _power(power)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CALLS and args:
            return (sum if name == "Mul" else max)(map(_degree, args))
        case ast.BinOp(left=base, op=ast.Pow(), right=power):
            return _degree(base) * _power(power)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            return (sum if isinstance(op, ast.Mult) else max)((_degree(left), _degree(right)))
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _OPERATORS):
            return _degree(operand)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(isinstance(op, _OPERATORS) for op in ops):
            return max(map(_degree, (left, *others)))
    raise ValueError(f"{ast.unparse(tree)[:80]!r} in a size")


def _power(tree: ast.expr) -> int:
    """Return the small number that a size is raised to, 1 for a root.  Raises ValueError for any other power."""
    match tree:
        case ast.Call(func=ast.Name(id="Integer"), args=[ast.Constant(value=int() as n)], keywords=[]):
            pass
        case ast.Constant(value=int() as n):
            pass
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=1)):
            n = 1
        case ast.Call(func=ast.Name(id="Rational"), args=[ast.Constant(value=1), ast.Constant(value=2)], keywords=[]):
            n = 1
        case _:
            raise ValueError(f"the power {ast.unparse(tree)[:80]!r} in a size")
    if not -1 <= n <= 4:
        raise ValueError(f"the power {n} in a size")
    return max(1, n)
