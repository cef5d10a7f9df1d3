"""A method from the plain values of a checkpoint: classes are looked up, and every other value is checked."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from semiseg.errors import UserError
from semiseg.methods import Method
from semiseg.networks import Network
from semiseg.trust import named_class

MAX_INTEGER = 1_000_000  # of an argument
MAX_NUMBER = 1e12
MAX_LENGTH = 32  # of a list
MAX_TEXT = 1000
OWN_KEYS = ("_class_path", "_instantiator")  # of Lightning, beside a method's arguments

Maker = Callable[..., Any]


class _NotPlainError(Exception):
    """An annotation stands for more than plain values."""


class Builder:
    """Make what a checkpoint describes, of classes of semiseg and of trusted modules.

    Args:
        where: the checkpoint, for messages.
        trusted: modules besides semiseg whose classes it may name.
    """

    def __init__(self, where: str, trusted: Collection[str]) -> None:
        self.where = where
        self.trusted = trusted

    def method(self, cls: type[Method], hyper_parameters: Mapping[str, Any]) -> Method:
        """A method with the arguments that it was trained with, its weights fresh.

        Optimizer, schedule, ramps and all else that is an object or makes one are for training: they are left to the
        method's defaults. Networks and other modules are not.

        Raises:
            UserError: an argument is unknown, of another type, or out of range; or the method refuses it.
        """
        arguments = {name: value for name, value in hyper_parameters.items() if name not in OWN_KEYS}
        try:
            return cls(**self._arguments(cls, arguments, skip=0, for_training=True))
        except UserError as error:
            raise UserError(self._placed(str(error))) from error
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.where}: does not fit this version of semiseg ({reason})") from error

    def _placed(self, message: str) -> str:
        return message if message.startswith(self.where) else f"{self.where}: {message}"

    def _arguments(self, cls: type, given: Any, skip: int, for_training: bool) -> dict[str, Any]:
        """Arguments of a constructor, checked; the first `skip` parameters are given by somebody else."""
        parameters = _parameters(cls, skip)
        if not isinstance(given, dict):
            raise UserError(f"{self.where}: the arguments of {cls.__name__} are no mapping")
        if unknown := [name for name in given if name not in parameters]:
            raise UserError(
                f"{self.where}: {cls.__name__} has no argument {str(unknown[0])[:80]!r} in this version of semiseg"
            )
        arguments = {}
        for name, value in given.items():
            annotation, default = parameters[name]
            if name == "weights" and issubclass(cls, Network) and isinstance(value, str):
                value = None  # a file to start from: what became of it is in the checkpoint
            place = f"{self.where}: {cls.__name__}'s {name}"
            try:
                arguments[name] = _checked(value, annotation)
            except _NotPlainError:
                if (made := self._module(value, annotation, default, place)) is not None:
                    arguments[name] = made
                elif not for_training and not _is_default(value, default):
                    raise UserError(f"{place}: is an object that is not made from a file; use its default") from None
            except ValueError as error:
                raise UserError(f"{place}: {error}") from None
        return arguments

    def _module(self, value: Any, annotation: Any, default: Any, place: str) -> Maker | nn.Module | None:
        """A module, or what makes one, where the annotation asks for it and the default is not meant."""
        base, skip = _product(annotation)
        if base is None or _is_default(value, default):
            return None
        path, given = (value.get("class_path"), value.get("init_args", {})) if isinstance(value, dict) else (value, {})
        cls: type[nn.Module] = named_class(path, base, self.trusted, place)
        maker = partial(cls, **self._arguments(cls, given, skip or 0, for_training=False))
        return maker() if skip is None else maker


def _parameters(cls: type, skip: int) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of the arguments of a constructor, those that it hands on to its bases included."""
    found: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:
        init = vars(owner).get("__init__")
        if owner in (object, nn.Module) or init is None:
            continue
        try:
            hints = get_type_hints(init, include_extras=True)
        except (NameError, TypeError, AttributeError):  # an annotation that is there for type checkers alone
            hints = {}
        _, *parameters = inspect.signature(init).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.replace(annotation=hints.get(parameter.name, Any)))
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    taken = [name for name, parameter in found.items() if parameter.kind == parameter.POSITIONAL_OR_KEYWORD][:skip]
    return {name: (found[name].annotation, found[name].default) for name in found if name not in taken}


def _product(annotation: Any) -> tuple[type[nn.Module] | None, int | None]:
    """The module class that an annotation asks for, and how many arguments its maker gets; None: an instance."""
    for choice in _choices(annotation):
        origin, arguments = get_origin(choice), get_args(choice)
        if isinstance(choice, type) and issubclass(choice, nn.Module):
            return choice, None
        if origin is type and isinstance(arguments[0], type) and issubclass(arguments[0], nn.Module):
            return arguments[0], 0
        if origin is Callable:
            given, made = arguments
            if isinstance(made, type) and issubclass(made, nn.Module):
                return made, 0 if given is Ellipsis else len(given)
    return None, None


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(choice for member in get_args(annotation) for choice in _choices(member))
    return (annotation,)


def _is_default(value: Any, default: Any) -> bool:
    """Whether a value is the path of a parameter's default, or stands for nothing."""
    if isinstance(value, dict) and not value.get("init_args"):
        value = value.get("class_path")
    module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
    return value is None or (module in sys.modules and vars(sys.modules[module]).get(name) is default)


def _checked(value: Any, annotation: Any) -> Any:
    """A plain value, as its annotation wants it.

    Raises:
        ValueError: it is of another type, or out of range.
        _NotPlainError: the annotation stands for more than plain values, and this value is of none of them.
    """
    choices, others = _choices(annotation), 0
    for choice in choices:
        try:
            return _as(value, choice)
        except ValueError:
            continue
        except _NotPlainError:
            others += 1
    if others:
        raise _NotPlainError
    raise ValueError(f"has a value that it cannot have ({_shown(value)})")


def _as(value: Any, kind: Any) -> Any:
    """A plain value as one kind of annotation."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, inspect.Parameter.empty):
        return _as(value, list[Any]) if isinstance(value, list | tuple) else _scalar(value, type(value))
    if kind in (None, NoneType, bool, int, float, str):
        return _scalar(value, NoneType if kind is None else kind)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise ValueError
    if kind is tuple or origin is tuple:
        kinds = arguments if arguments and arguments[-1] is not Ellipsis else None
        if kinds is not None and len(kinds) != len(_sequence(value)):
            raise ValueError
        kinds = kinds or (arguments[:1] or (Any,)) * len(_sequence(value))
        return tuple(_checked(part, wanted) for part, wanted in zip(value, kinds, strict=True))
    if isinstance(origin or kind, type) and issubclass(list, origin or kind) and (origin or kind) is not object:
        return [_checked(part, arguments[0] if arguments else Any) for part in _sequence(value)]
    if isinstance(origin or kind, type) and issubclass(dict, origin or kind) and (origin or kind) is not object:
        if not isinstance(value, dict) or len(value) > MAX_LENGTH:
            raise ValueError
        names, wanted = arguments or (str, Any)
        return {_checked(name, names): _checked(part, wanted) for name, part in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        if isinstance(value, str) and value in kind.__members__:
            return kind[value]
        raise ValueError
    if isinstance(kind, type) and issubclass(kind, int | float | str):  # with a range of its own
        return kind(_scalar(value, next(plain for plain in (int, float, str) if issubclass(kind, plain))))
    raise _NotPlainError


def _sequence(value: Any) -> Sequence[Any]:
    if isinstance(value, list | tuple) and len(value) <= MAX_LENGTH:
        return value
    raise ValueError


def _scalar(value: Any, kind: Any) -> Any:
    if kind is float and type(value) is int:
        kind = int
    right = type(value) is kind and kind in (NoneType, bool, int, float, str)
    if right and kind is int:
        right = abs(value) <= MAX_INTEGER
    elif right and kind is float:
        right = abs(value) <= MAX_NUMBER  # NaN is not
    elif right and kind is str:
        right = len(value) <= MAX_TEXT and value.isprintable()
    if right:
        return value
    raise ValueError


def _shown(value: Any) -> str:
    """A value for a message: short, and of containers the kind alone."""
    return repr(value)[:80] if isinstance(value, str | int | float | None) else type(value).__name__
