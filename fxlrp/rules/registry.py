"""The registry: which rule each op has, in which rulebook."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, fx

from fxlrp.errors import FxlrpError
from fxlrp.ops import about, overloads
from fxlrp.rules.absolute import absolute
from fxlrp.rules.folded import FoldedProduct
from fxlrp.rules.normalise import MASS, Normalise
from fxlrp.rules.values import nearly

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten

Cotangents = Tensor | Sequence["Tensor | None"] | None
Key = tuple["Callable | str", "tuple[int, ...] | None"]
Pass = Callable[[fx.GraphModule, "Facts"], bool]


@dataclass(frozen=True)
class Rule:
    """A relevance rule for an op.

    fn(g, z, *args, **kwargs) gets the cotangent g and the value z of the op's output (R = z g) and the op's own
    arguments, and returns the cotangents of the arguments in `argnums` (default: those that carry relevance),
    which are counted in pytree order.  A function with a keyword `argnums` or `op` is passed these.
    """

    fn: Callable[..., Cotangents]
    argnums: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return self.fn.__name__

    def wants(self, keyword: str) -> bool:
        return keyword in inspect.signature(self.fn).parameters


@dataclass(frozen=True)
class Derivative:
    """The op's ordinary vector-Jacobian product, applied to s = adjust(g, z, **parameters) instead of g."""

    adjust: Callable[..., Tensor]
    parameters: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        return self.adjust.__name__


@dataclass(frozen=True)
class ScaledDerivative:
    """The op's ordinary vector-Jacobian product, multiplied by a factor for each argument that carries relevance; by 1
    if there are no factors."""

    name: str
    factors: tuple[float, ...] = ()


class Structural:
    """The op's ordinary vector-Jacobian product routes relevance R = a ⊙ g correctly, so that it needs no rule."""

    name = "structural"


STRUCTURAL = Structural()
ABSOLUTE = Rule(absolute)
"""absLRP's own rule, for ops that it is right for; ops without an entry get it too, and are reported as generic."""
Entry = Rule | Derivative | ScaledDerivative | Structural


def _name(op: object) -> str | None:
    return op._schema.name if isinstance(op, torch._ops.OpOverload) else None


def table(*rows: tuple) -> dict[Key, Entry]:
    """A rule table from rows (rule, op, op, …) or (rule, (args,), op, …), where `args` are the positions carrying
    relevance for which the row holds, None for any.  Without them it holds for position 0, and for any if the rule is
    STRUCTURAL, ABSOLUTE or a derivative.
    """
    out: dict[Key, Entry] = {}
    for rule, *ops in rows:
        anywhere = rule is ABSOLUTE or isinstance(rule, Structural | Derivative | ScaledDerivative)
        args: tuple[int, ...] | None = None if anywhere else (0,)
        if ops and (ops[0] is None or isinstance(ops[0], tuple)):
            args, *ops = ops
        entry = rule if isinstance(rule, Entry) else Rule(rule)
        out.update({(overload, args): entry for op in ops for overload in overloads(op)})
    return out


STRUCTURAL_ENTRIES = table(
    (STRUCTURAL, nearly),
    # a constant factor scales a and g inversely, so R = a ⊙ g passes unchanged
    (STRUCTURAL, (0,), aten.mul, aten.div, aten.multiply, aten.divide),
    (STRUCTURAL, (1,), aten.mul, aten.multiply),
)
"""Ops that need no rule in any method, besides those that move values (`fxlrp.ops`): those that scale by a constant."""


@dataclass(frozen=True)
class Rulebook:
    """A method: a table from op to rule, how relevance is rescaled, how an explanation is seeded.

    entries: (op, positions that carry relevance, or None for any) → its rule.  Ops that move values (`fxlrp.ops`) need
        none.  A class stands for the ops that are its instances, and "namespace::name" for an op of a library that may
        not be installed.
    normalise: MASS, UNIT or NONE (fxlrp.rules.normalise).
    passes: graph passes that write the graph in the ops of the table, run in order; each is called with the graph and
        facts about it (fxlrp.graph.facts.Facts), and returns whether it changed the graph.
    unknown: the entry of ops that have none; None is the generic rule.
    reads: what an attribution holds: the "relevance" a ⊙ g of each input, or its "gradient" g.
    seed: how the target's direction v over the logits becomes relevance: "relevance": R = v; "share": R = |z| v, each
        sign brought to mass Σ|v|; "gradient": R = z v.
    default_contrast: what a target is set against where the call does not say: None, "others" or "softmax".
    contrast_passes: 1: one pass with a seed of both signs; 2: one pass a side, subtracted at the input.
    """

    name: str
    doc: str = field(repr=False)
    entries: Mapping[Key, Entry] = field(repr=False)
    normalise: Normalise = MASS
    passes: tuple[Pass, ...] = field(default=(), repr=False)
    unknown: Entry | None = None
    reads: str = "relevance"
    seed: str = "share"
    default_contrast: str | None = "others"
    contrast_passes: int = 1

    def extend(self, rows: Mapping[Key, Entry] | Iterable[tuple] = (), **changes: Any) -> Rulebook:
        """A rulebook like this one but for `rows` (as in `table`) and any other field, e.g. name="mine"."""
        new = rows if isinstance(rows, Mapping) else table(*rows)
        kept = {(op, args): e for (op, args), e in self.entries.items() if (op, None) not in new}
        return replace(self, **{"name": f"{self.name}+", **changes, "entries": {**kept, **new}})

    def __deepcopy__(self, memo: object) -> Rulebook:
        return self

    def __reduce__(self) -> tuple:
        """Pickled by its name, since torch's ops are not to be pickled.  Raises FxlrpError for one of a user's own."""
        if self.name.partition(":")[0] not in _books() or find_rulebook(self.name)._content != self._content:
            raise FxlrpError(
                f"Rulebook {self.name!r} has no name to be pickled by: fxlrp.rules.registry.publish(book) gives one."
            )
        return find_rulebook, (self.name,)

    @property
    def _content(self) -> tuple:
        """The properties by which rulebooks of one name are compared.  Rules and passes are compared by name, because
        each call of a rulebook's function makes new ones."""
        rules = {key: entry.name for key, entry in self.entries.items()}
        passes = [each.__name__ for each in self.passes]
        return rules, passes, self.normalise, self.reads, self.seed, self.default_contrast, self.contrast_passes

    def __or__(self, rows: Mapping[Key, Entry]) -> Rulebook:
        return self.extend(rows)

    def resolve(self, contrast: int | str | None, independent: bool) -> int | str | None:
        """The contrast that is meant: "default" is this rulebook's own, and none of classes that are independent, as
        those behind a sigmoid each: what speaks for the others does not speak against one of them."""
        default = None if independent else self.default_contrast
        return default if contrast == "default" else contrast

    def lookup(self, op: Callable | str, active: tuple[int, ...]) -> Entry | None:
        """The entry for an op with relevance at the argument positions `active`; None means the generic rule.

        A user's entries come first, then the rulebook's own. An op without any that moves values is structural.
        """
        if isinstance(op, FoldedProduct):
            op = op.product
        names: tuple[Any, ...] = (op, type(op), _name(op))
        for name in names:
            if entries := {at: entry for (named, at), entry in _USER.items() if named == name}:
                return _of_user(op, entries, active)
            for key in ((name, active), (name, None)):
                if key in self.entries:
                    return self.entries[key]
        return STRUCTURAL if about(op).moves else self.unknown


_USER: dict[Key, Entry] = {}


def _of_user(op: object, entries: Mapping[tuple[int, ...] | None, Entry], active: tuple[int, ...]) -> Entry:
    """The rule that a user registered for an op whose arguments `active` carry relevance: the one for just these, else
    the one that gives to most of them.  Raises FxlrpError if there is one for other arguments alone."""
    if active in entries:
        return entries[active]
    places = max((at for at in entries if at is not None), key=lambda at: len({*at} & {*active}), default=None)
    if places is None or not {*places} & {*active}:
        rule = entries.get(None) or next(iter(entries.values()))
        if not active or (None in entries and active[0] == 0):
            return rule
        raise FxlrpError(
            f"Rule {rule.name!r} for {op} is for {'its first argument' if None in entries else f'arguments {places}'}, "
            f"and here relevance stands at {active}: register one for that, @fxlrp.rule(op, args={active})."
        )
    argnums, entry = tuple(i for i in places if i in active), entries[places]
    if not isinstance(entry, Rule):
        return entry
    return Rule(entry.fn if argnums == places else _some(entry.fn, places, argnums), argnums)


@functools.cache
def _some(
    fn: Callable[..., Sequence[Tensor | None] | None], places: tuple[int, ...], argnums: tuple[int, ...]
) -> Callable:
    """A rule that returns what another gives to some of its arguments; the others are constants here."""

    @functools.wraps(fn)
    def rule(*args: object, **kwargs: object) -> Cotangents:
        cotangents = fn(*args, **kwargs)
        return cotangents if cotangents is None else tuple(cotangents[places.index(i)] for i in argnums)

    return rule


def user_rules() -> dict[Key, Entry]:
    """The rules registered by `rule`, which come before every rulebook's."""
    return dict(_USER)


_BOOKS: dict[str, Callable[..., Rulebook]] = {}


def rule(*ops: Callable, args: tuple[int, ...] | None = None) -> Callable[[Callable], Callable]:
    """Register a rule for ops of your own (or instead of ours), in every rulebook.

    args: the positions of the op's arguments for which the function returns cotangents; without it, each argument that
    carries relevance, the first among them.  None in the place of a cotangent says that an argument gets nothing; what
    is NaN, or loses all relevance without saying so, is an error when relevance comes by.

        @fxlrp.rule(torch.ops.mylib.scale.default)
        def scale(g, z, x, factor):
            return factor * g
    """
    if not ops or not all(callable(op) for op in ops):
        raise FxlrpError("fxlrp.rule takes the ops the rule is for, e.g. @fxlrp.rule(torch.ops.mylib.foo.default).")

    def register(fn: Callable) -> Callable:
        _USER.update({(each, args): Rule(fn) for op in ops for each in overloads(op)})
        return fn

    return register


def unregister(*ops: Callable) -> None:
    """Forget the rules registered for `ops` with `fxlrp.rule`."""
    gone = {overload for op in ops for overload in overloads(op)}
    for key in [k for k in _USER if k[0] in gone]:
        del _USER[key]


@overload
def publish(book: Rulebook) -> Rulebook: ...
@overload
def publish(book: Callable[..., Rulebook]) -> Callable[..., Rulebook]: ...
def publish(book: Rulebook | Callable[..., Rulebook]) -> Rulebook | Callable[..., Rulebook]:
    """Make a rulebook known by its name.  As a decorator of a function whose parameters have defaults: the rulebooks
    that it returns, by the function's name and with its docstring."""
    if isinstance(book, Rulebook):
        _BOOKS[book.name] = lambda: book
        return book
    name, doc = book.__name__.replace("_", "-"), " ".join((book.__doc__ or "").split())
    defaults = inspect.signature(book).parameters

    @functools.wraps(book)
    def make(**parameters: object) -> Rulebook:
        given = ",".join(f"{k}={v}" for k, v in parameters.items() if v != defaults[k].default)
        return replace(book(**parameters), name=f"{name}:{given}" if given else name, doc=doc)

    _BOOKS[name] = make
    return make


def _books() -> dict[str, Callable[..., Rulebook]]:
    """The rulebooks known by name: our own, which stand above the rules and are imported here, and users'."""
    import_module("fxlrp.methods").publish_all()
    return _BOOKS


def rulebooks() -> dict[str, Rulebook]:
    """All rulebooks known by name, with the defaults of their parameters."""
    return {name: make() for name, make in _books().items()}


def parameters_of(name: str) -> dict[str, object]:
    """The parameters of the rulebook of that name and their defaults."""
    return {p.name: p.default for p in inspect.signature(_books()[name]).parameters.values()}


def rulebook(name: str, **parameters: object) -> Rulebook:
    """The rulebook of that name with these parameters: fxlrp.rulebook("gamma", gamma=0.1).

    Raises FxlrpError for an unknown name or parameter, and for a parameter that is no number but should be.
    """
    if name not in _books():
        raise FxlrpError(f"There is no rulebook {name!r}; there are {', '.join(sorted(_BOOKS))}.")
    defaults = parameters_of(name)
    for unknown in parameters.keys() - defaults.keys():
        has = ", ".join(f"{k}={v}" for k, v in defaults.items()) or "no parameters"
        raise FxlrpError(f"Rulebook {name!r} has no parameter {unknown!r}; it has {has}.")
    for key, value in parameters.items():
        if isinstance(defaults[key], float) and not isinstance(value, int | float):
            raise FxlrpError(f"{key}={value!r} of rulebook {name!r} is no number; by default it is {defaults[key]}.")
    return _BOOKS[name](**parameters)


def find_rulebook(rules: str | Rulebook) -> Rulebook:
    """The rulebook of that name, "name" or "name:parameter=value,…" (a Rulebook is returned as it is).

    Raises FxlrpError for an unknown name or parameter, and for a value that is none.
    """
    if isinstance(rules, Rulebook):
        return rules
    name, _, rest = rules.partition(":")
    parameters: dict[str, object] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise FxlrpError(f"{part!r} in {rules!r} is no parameter; write {name}:parameter=value,parameter=value.")
        parameters[key.strip()] = _value(value.strip())
    return rulebook(name, **parameters)


def _value(text: str) -> float | str | None:
    try:
        return None if text == "none" else float(text)
    except ValueError:
        return text
