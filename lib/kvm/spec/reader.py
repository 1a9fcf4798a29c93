"""From plain values to typed structures: by their types, and with all that is wrong, not only the first."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from msgspec import UNSET, Struct, inspect

from ...errors import Problem
from .types import Secret, size_of

S = TypeVar("S", bound=Struct)
_NEAR: Final = 0.5  # how alike a field's name must be to be offered


# It takes 2 ms, and is the same for ever.
_type_info = cache(inspect.type_info)


class Reader:
    """Reads one document; `problems` has what is wrong with it, in its order."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def struct(self, cls: type[S], value: Any) -> S:
        """The structure. What is wrong has its default in it, so that the rest can be looked at as well."""
        kind = _type_info(cls)
        assert isinstance(kind, inspect.StructType)
        found = self._read(kind, value, "")
        return cast(S, _blank(kind) if found is UNSET else found)

    def entry(self, cls: type[Struct], field: str, index: int, value: Any) -> Any:
        """One more entry of a list of structures.

        :param field: of `cls`: the list
        :param index: where in it the entry comes
        """
        fields = cast(inspect.StructType, _type_info(cls)).fields
        kind = cast(inspect.VarTupleType, next(each.type for each in fields if each.name == field)).item_type
        found = self._read(kind, value, f"{field}[{index}]")
        return _blank(cast(inspect.StructType, kind)) if found is UNSET else found

    def is_broken(self, path: str, *, with_part: bool) -> bool:
        """Whether something is wrong with a field, or with another one of its part of the document."""
        parts = {path, path.rpartition(".")[0]} - {""} if with_part else {path}
        paths = [problem.path for problem in self.problems]
        return any(each in parts or (with_part and each.rpartition(".")[0] in parts) for each in paths)

    def _bad(self, path: str, value: Any, allowed: str) -> Any:
        self.problems.append(Problem(path, value, allowed))
        return UNSET

    def _read(self, kind: Any, value: Any, path: str) -> Any:
        description, size = "", False
        while isinstance(kind, inspect.Metadata):
            description = (kind.extra_json_schema or {}).get("description", "") or description
            size = size or bool((kind.extra or {}).get("size"))
            kind = kind.type
        if size:
            value = value if (found := size_of(value)) is None else found
        reader = _READERS[type(kind)]
        return reader(self, kind, value, path, description)

    # -- one for each kind of type: it gives the value, or notes what is wrong and gives UNSET --------

    def _struct(self, kind: inspect.StructType, value: Any, path: str, _: str) -> Any:
        if kind.cls is Secret:
            return self._secret(value, path)
        if not isinstance(value, Mapping):
            return self._bad(path, value, "a table of fields")
        fields = {field.name: field for field in kind.fields}
        read: dict[str, Any] = {}
        for name, given in value.items():
            inside = f"{path}.{name}" if path else str(name)
            if name in fields:
                read[name] = self._read(fields[name].type, given, inside)
            else:
                self._unknown(inside, str(name), list(fields))
        for name, field in fields.items():
            if field.required and name not in value:
                allowed = f"it is missing; it has to be {describe(field.type)}"
                self._bad(f"{path}.{name}" if path else name, UNSET, allowed)
        return _blank(kind, {name: each for name, each in read.items() if each is not UNSET})

    def _unknown(self, path: str, name: str, fields: Sequence[str]) -> None:
        near = difflib.get_close_matches(name, fields, 1, _NEAR)
        hint = f"the nearest is {near[0]!r}" if near else f"there are {', '.join(fields)}"
        self._bad(path, UNSET, f"there is no such field; {hint}")

    def _list(self, kind: inspect.VarTupleType, value: Any, path: str, _: str) -> Any:
        if not isinstance(value, list | tuple):
            return self._bad(path, value, "a list")
        found = [self._read(kind.item_type, each, f"{path}[{n}]") for n, each in enumerate(value)]
        if isinstance(kind.item_type, inspect.StructType):
            found = [_blank(kind.item_type) if each is UNSET else each for each in found]
        return tuple(each for each in found if each is not UNSET)

    def _dict(self, kind: inspect.DictType, value: Any, path: str, _: str) -> Any:
        if not isinstance(value, Mapping):
            return self._bad(path, value, "a table")
        pairs = [
            (self._read(kind.key_type, name, path), self._read(kind.value_type, each, f"{path}.{name}"))
            for name, each in value.items()
        ]
        return {name: each for name, each in pairs if UNSET not in (name, each)}

    def _union(self, kind: inspect.UnionType, value: Any, path: str, description: str) -> Any:
        """What may be absent: the only unions that a specification has."""
        if value is None:
            return None
        inner = next(each for each in kind.types if not isinstance(each, inspect.NoneType))
        if isinstance(inner, inspect.StructType) and inner.cls is not Secret and isinstance(value, bool):
            return inner.cls() if value and not any(field.required for field in inner.fields) else None
        return self._read(inner, value, path)

    def _bool(self, kind: inspect.BoolType, value: Any, path: str, _: str) -> Any:
        return value if isinstance(value, bool) else self._bad(path, value, describe(kind))

    def _int(self, kind: inspect.IntType, value: Any, path: str, description: str) -> Any:
        good = isinstance(value, int) and not isinstance(value, bool)
        return value if good and _within(kind, value) else self._bad(path, value, description or describe(kind))

    def _float(self, kind: inspect.FloatType, value: Any, path: str, description: str) -> Any:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if good and _within(kind, value) else self._bad(path, value, description or describe(kind))

    def _str(self, kind: inspect.StrType, value: Any, path: str, description: str) -> Any:
        # the whole of it: a pattern's '$' alone would let a newline through at the end
        good = isinstance(value, str) and (kind.pattern is None or re.fullmatch(kind.pattern, value))
        return value if good else self._bad(path, value, description or describe(kind))

    def _literal(self, kind: inspect.LiteralType, value: Any, path: str, _: str) -> Any:
        if value is False and "off" in kind.values:
            return "off"
        good = isinstance(value, str) and value in kind.values
        return value if good else self._bad(path, value, describe(kind))

    def _any(self, kind: inspect.AnyType, value: Any, path: str, _: str) -> Any:
        return value

    def _secret(self, value: Any, path: str) -> Any:
        text = value.get("secret") if isinstance(value, Mapping) else value
        return Secret(text) if isinstance(text, str) and text else self._bad(path, UNSET, "it has to be a text")


def _blank(kind: inspect.StructType, known: Mapping[str, Any] = MappingProxyType({})) -> Struct:
    """A structure of what is known of it; fields that must be there and are not are empty."""
    missing = {field.name: "" for field in kind.fields if field.required}
    made: Struct = kind.cls(**{**missing, **known})
    return made


def _within(kind: Any, value: float) -> bool:
    return (kind.ge is None or value >= kind.ge) and (kind.le is None or value <= kind.le)


def describe(kind: Any) -> str:
    """What may stand in a field of this type, for an error."""
    while isinstance(kind, inspect.Metadata):
        described = (kind.extra_json_schema or {}).get("description")
        if described:
            return str(described)
        kind = kind.type
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(str(each) for each in kind.values)}"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return f"{what} from {kind.ge} to {kind.le}" if kind.le is not None else what
    return "true or false" if isinstance(kind, inspect.BoolType) else "a text"


_READERS: Final[Mapping[type, Callable[..., Any]]] = {
    inspect.StructType: Reader._struct,
    inspect.VarTupleType: Reader._list,
    inspect.DictType: Reader._dict,
    inspect.UnionType: Reader._union,
    inspect.BoolType: Reader._bool,
    inspect.IntType: Reader._int,
    inspect.FloatType: Reader._float,
    inspect.StrType: Reader._str,
    inspect.LiteralType: Reader._literal,
    inspect.AnyType: Reader._any,
}
