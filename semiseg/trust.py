"""What a file may name: classes that are defined already, in this package or in modules that the user trusts.

A checkpoint, or the configuration of a run from elsewhere, names classes by their paths. To import such a path runs
the code of its module, and to call it runs whatever it leads to, so neither is done: the path is looked up.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterator
from importlib.machinery import PathFinder
from typing import Any, TypeVar

from semiseg.errors import UserError
from semiseg.files import import_from_here

T = TypeVar("T")

MAX_PATH = 200  # characters of a class path
_CLASS_KEYS = ("class_path", "_class_path")
_TEXT_KEYS = (  # whose values may look like a class path, as cases.csv does, and are none
    "root", "manifest", "weights", "cache_dir", "runs_dir", "experiment", "method_name", "default_root_dir",
    "_instantiator",  # Lightning's own function, which nothing here calls
)  # fmt: skip


def add_trust_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--trust MODULE`, which may be given several times; `import_trusted` takes its values.

    Args:
        parser: parser of a command.
        what: the file whose classes are meant, for the help.
    """
    parser.add_argument(
        "--trust", action="append", nargs="?", const="", default=[], metavar="MODULE",
        help=f"import this module, which is not part of semiseg, and let {what} name its classes",
    )  # fmt: skip


def import_trusted(modules: Collection[str], where: str) -> None:
    """Import the modules that the user named by `--trust`, those of the current folder too.

    Args:
        modules: their names.
        where: the file that needs them, for messages.

    Raises:
        UserError: a name is missing or is none, or its module cannot be imported.
    """
    import_from_here()
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            given = f"--trust {module}".strip()
            raise UserError(f"{given}: name the module whose classes {where} may use, such as --trust mine")
        try:
            importlib.import_module(module)
        except Exception as error:  # its code may do anything
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--trust {module}: cannot be imported ({type(error).__name__}: {reason}); run where its file is, or "
                "put its folder on PYTHONPATH"
            ) from error


def named_class(path: Any, base: type[T], trusted: Collection[str], where: str) -> type[T]:
    """The class that a file names, among the subclasses of `base` that semiseg and the trusted modules define.

    Args:
        path: class path, or the name of a class alone.
        base: what the class must be a subclass of.
        trusted: modules besides semiseg, imported before; those below them are trusted too.
        where: the file, for messages.

    Raises:
        UserError: there is no such class.
    """
    if not _is_path(path):
        raise UserError(f"{where}: names no class where a {base.__name__} is expected; give a checkpoint of semiseg")
    packages = {"semiseg", *trusted}
    module, _, name = path.rpartition(".")
    exported = vars(sys.modules[module]).get(name) if module in sys.modules else None
    found = [
        cls
        for cls in _subclasses(base)
        if (cls is exported and within(module, packages))
        or (within(cls.__module__, packages) and path in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}"))
    ]
    if not module and len(set(found)) > 1:
        raise UserError(f"{where}: names {path}, of which there are several; write its module before it")
    if found:
        return exported if exported in found else found[-1]
    if not module:
        raise UserError(f"{where}: names {path}, which is no {base.__name__} of semiseg; give the path of its module")
    if within(module, trusted) and module not in sys.modules:
        raise UserError(
            f"{where}: needs {path}, whose module is not imported by those that are trusted; add --trust {module}"
        )
    if within(module, packages):
        raise UserError(f"{where}: names {path}, but {module} has no such {base.__name__}; use the version it is from")
    raise UserError(
        f"{where}: needs {path}, which is not part of semiseg; importing it runs its code: if you trust it, add "
        f"--trust {module}"
    )


def foreign_modules(value: Any, base_packages: Collection[str] = ("semiseg", "torch.optim")) -> list[str]:
    """Modules outside of the package that class paths anywhere inside a configuration or hyperparameters name.

    A class stands as `class_path` or `_class_path`, or as text where a class is expected. Of texts those count whose
    first part is a module that can be imported. A path into a base package counts unless it leads to a class that is
    defined there: `semiseg.files.os.system` is foreign.

    Args:
        value: nested mappings and sequences; shared parts are looked at once.
        base_packages: packages whose classes may be named; they are imported to look.
    """
    paths = dict.fromkeys(_class_paths(value))
    return sorted({path.rpartition(".")[0] for path in paths if "." in path and not _defines(base_packages, path)})


def within(module: str, packages: Collection[str]) -> bool:
    """Whether a module is one of some packages, or below one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _is_path(path: Any) -> bool:
    return isinstance(path, str) and len(path) <= MAX_PATH and all(part.isidentifier() for part in path.split("."))


def _subclasses(base: type[T]) -> Iterator[type[T]]:
    """All subclasses, in the order of their definition below each class."""
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _class_paths(value: Any) -> Iterator[str]:
    waiting: list[tuple[Any, Any]] = [(None, value)]
    seen: set[int] = set()
    while waiting:  # without recursion, however deep it is
        key, value = waiting.pop()
        value = vars(value) if isinstance(value, argparse.Namespace) else value
        if isinstance(value, str):
            if _is_path(value) and (key in _CLASS_KEYS or (key not in _TEXT_KEYS and "." in value and _exists(value))):
                yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.items() if isinstance(value, dict) else ((key, part) for part in value)


def _exists(path: str) -> bool:
    """Whether the first part of a path is a module; nothing is imported."""
    top = path.partition(".")[0]
    if top in sys.modules:
        return True
    return importlib.util.find_spec(top) is not None or PathFinder.find_spec(top, [os.getcwd()]) is not None


def _defines(packages: Collection[str], path: str) -> bool:
    """Whether a path leads to a class that these packages define."""
    module, _, name = path.rpartition(".")
    if not within(module, packages) or "__main__" in module:
        return False
    try:
        found = vars(importlib.import_module(module)).get(name)
    except ImportError:
        return False
    return isinstance(found, type) and within(found.__module__, packages)
