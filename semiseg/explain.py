"""Jsonargparse's report on a configuration in one line: the option, what is wrong and the nearest valid name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_args, get_type_hints

_NO_DATA = "--data is missing: name a data set, such as --config configs/data/glas.yaml or --data Synthetic"
_STEPS = re.compile(r"""Parser key "(?P<key>[\w.+]+)"|given class_path '(?P<owner>[\w.]+)'""")
# What ends a report, in words that follow the place it is about.
_REASON = re.compile(
    r"Option '(?P<option>[^']+)' is not accepted"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<member>[^']+)'"
    r"|Subcommand '\w+' does not accept option '(?P<stray>[^']+)'"
    r"|unrecognized arguments: (?P<argument>[^\s=]+)"
    r"|ambiguous option: --(?P<short>[\w.]+)\S* could match (?P<longer>[^\n]+)"
    r"|arguments are required: (?P<required>[\w.]*\w)"
    r"|argument (-c/)?(?P<empty>--[\w.]+): expected one argument"
    r"|(?P<file>File does not exist|Path is not a file|Path is not readable): (?P<path>.+)"
    r"|(?P<group_value>Unable to load config) '(?P<value>.*)'"
    r"|(?:Expected a dot import path string|Unexpected import path format): (?P<name>\S+)"
    r"|(?P<nothing>Expected a dot import path string: *\n|Not a valid subclass of|Expected an import path or)"
    r"|Expected a tuple with (?P<count>\d+) elements?\. Got value: (?P<elements>.*?)(?=\. Got value|\n|$)"
    r"|does not conform to restriction v(?P<restriction>\S+)"
    r"|(?P<foreign>to be a subclass|not correspond to a subclass|module '\S+' has no attribute|No module named)"
    r"|(?P<named>Not of type \w+(?!.*restriction))"
    r"|Expected an? (?P<type>(?!<class 'NoneType'>)(<class|typing\.)[^\n]*)"
)
_SET_ELSEWHERE = {"seed", "in_channels", "num_classes", "spatial_dims"}
_NOUNS = {"SegmentationDataModule": "data set", "SegmentationMethod": "method", "LRScheduler": "schedule"}
_TYPES = {
    "int": "a whole number",
    "PositiveInt": "a whole number above 0",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list in brackets",
}


def explain(report: str, args: Sequence[str] = ()) -> str:
    """Jsonargparse's nested report in one line, with the option as it is typed on the command line.

    Args:
        report: text of the ArgumentError.
        args: command line that it is about.
    """
    ends = list(_REASON.finditer(report))
    end = next((e for e in ends if "'list'" not in (e["type"] or "")), ends[0] if ends else None)  # or one thing alone
    place: list[str] = []
    owner = ""  # path of the class whose options are read
    steps = list(_STEPS.finditer(report, 0, end.start() if end else len(report)))
    for step in steps:
        place += [part for part in (step["key"] or "").strip("+").split(".") if part not in ("", "init_args")]
        owner = step["owner"] or owner
    key = "--" + ".".join(place)
    if end is None:  # an exception's own words
        start = steps[-1].end() if steps else 0
        error = re.search(r"Errors:\n\s*- (.*)|$", report[start:])
        words = (error and error[1]) or report[start:].strip(": \n").split("\n")[0]
        return f"{key if place else '--config'} {_value(report, start)}".strip() + f": {words[:300]}"

    if end["required"]:
        of_base = end["required"] in ("data", "fit.data") or owner.endswith(".SegmentationDataModule")
        if not place and end["required"].endswith(".model"):
            return "--model is missing: name a method, such as --config configs/method/uamt.yaml or --model Supervised"
        needs = _given(report, end) or owner
        return _NO_DATA if of_base else f"{key}.{end['required']} is missing: {needs.split('.')[-1]} needs it"
    if end["empty"]:
        # jsonargparse names the group; the user typed one of its options
        pairs = zip(args, [*args[1:], "--"], strict=False)
        last, following = next((pair for pair in pairs if _bare(*pair, end["empty"])), (end["empty"], "--"))
        if not following.startswith("--"):  # such as -.inf, which is taken for an option
            return f"{last} {following}: write {last}={following}"
        return f"{last}: a value is missing after it"
    if end["file"]:
        return f"--{'.'.join(place) or 'config'} {end['path'].strip(chr(39))}: {end['file'].lower()}; correct the path"
    if end["stray"] or (end["argument"] and not place):
        stray = end["stray"] or end["argument"]
        if end["argument"] and not stray.startswith("--"):
            return f"{stray}: not understood here; every option starts with --"
        stray = stray.removeprefix("--")
        valid = _top_level(args[0] if args else "")
        if stray in valid and stray.startswith("data."):  # the option is right, but no data set is named to have it
            return _NO_DATA
        group, dot, name = stray.rpartition(".")
        beside = [option.removeprefix(group + dot) for option in valid if dot and option.startswith(group + dot)]
        near = _near(name, beside, f"--{group}{dot}") if beside else _near(stray, valid, "--")
        return f"--{stray}: no such option; {near}"
    if end["short"]:
        return f"{key}.{end['short']}: no such option; use one of {end['longer'].replace('--', f'{key}.')}"
    if end["option"] == "class_path":
        return f"{key}: in YAML the options of a class stand below init_args, beside class_path"
    if option := end["option"] or end["member"] or end["argument"]:
        parts = (f"{end['group']}.{option}" if end["group"] else option).removeprefix("--").split(".")
        kind = _class(_given(report, end) or owner)
        if kind is not None and parts[0] not in _options(kind):
            parts = parts[:1]  # what stands below it, such as a class_path, is no mistake of its own
        *groups, name = parts
        kind = _group(owner, groups[0]) if groups else kind
        prefix = ".".join([key, *groups, ""])
        what = kind.__name__ if kind is not None else "it"
        if name in _options(kind):  # it is the argument that the program gives, by its place
            return f"{prefix}{name}: {what} takes {name} where the program gives something else, such as the budget"
        names = [argument.partition("=")[0] for argument in args]
        group = f"--{place[0]}"
        if group in names and any(given.startswith(f"{group}.") for given in names[: names.index(group)]):
            return f"{prefix}{name}: {what} has no such option; give {group} before its options"
        return f"{prefix}{name}: {what} has no such option; {_near(name, _options(kind), prefix)}"
    if end["group_value"]:
        kind = _group(owner, place[-1])
        return f"{key} {end['value']}: set its options one by one: {', '.join(f'{key}.{o}' for o in _options(kind))}"
    if end["name"] or end["foreign"] or end["nothing"]:
        value = end["name"] or (_value(report, end.start()) if end["nothing"] else _wrong_class(report, owner))
        bases = _classes(_root(place) if len(place) == 1 or place[0] == "trainer" else _hint(_class(owner), place[-1]))
        near = _near(value.split(".")[-1], {kind.__name__ for base in bases for kind in _subclasses(base)})
        if module := re.search(r"No module named '([\w.]+)'", report):
            return f"{key} {value}: there is no Python module {module[1]}; put its folder on PYTHONPATH, or {near}"
        noun = next((_NOUNS.get(base.__name__, base.__name__.lower()) for base in bases), "class")
        return f"{key} {value}: no {noun} of that name; {near}"
    if end["count"]:
        return f"{key} {end['elements']}: give {end['count']} values"
    if end["restriction"]:
        return f"{key} {report.rpartition('Given value: ')[2].strip()}: use a number {end['restriction']}"
    return f"{key} {_wrong_type(report, end.start())}"


def _bare(argument: str, following: str, group: str) -> bool:
    return argument.startswith(group) and "=" not in argument and re.match(r"-(?![\d])", following) is not None


def _given(report: str, end: re.Match[str]) -> str | None:
    """Path of the class whose options a reason is about, where the report shows them after it."""
    inner = re.match(r"\. Got value: Namespace\(class_path='([\w.]+)'", report[end.end() :])
    return inner[1] if inner else None


def _value(report: str, start: int) -> str:
    """The value that a report is about from `start` on, shortened."""
    given = re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value|\n|$)", report[start:])
    return given[1][:60] if given else ""


def _near(name: str, valid: Collection[str], prefix: str = "") -> str:
    """The nearest valid name; else all of them, where they are few."""
    lower = {v.lower(): v for v in sorted(valid, reverse=True)}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    if near:
        return f"did you mean {prefix}{lower[near[0]]}?"
    if 0 < len(valid) <= 16:
        return f"use one of {', '.join(sorted(valid))}"
    return "semiseg fit --help lists what there is"


def _wrong_class(report: str, owner: str) -> str:
    """The class that was asked for, from the places where a report may mention it."""
    if asked := re.search(r"Expected (?:a path but )?'?([\w.]+)'? (?:either|to be a subclass)", report):
        return asked[1]
    if other := re.search(r"Import path ([\w.]+) does not correspond", report):
        return other[1]
    if missing := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", report):
        return f"{missing[1]}.{missing[2]}"
    return owner


def _wrong_type(report: str, start: int) -> str:
    """`VALUE: expected ...` from the alternatives that a report lists from `start` on."""
    alternatives = re.split(r"\n\s*Given value type", report[start:])[0]
    value = _value(report, start)
    expected: list[str] = []
    choices: list[str] = []
    kinds = r"(?:Expected an? <class '|Not of type )([\w.]+)|Expected an? typing\.Literal\[(.*?)\](?:\.|$)"
    for kind, literal in re.findall(kinds, alternatives, re.MULTILINE):
        choices += [choice.strip(" '\"") for choice in literal.split(",")] if literal else []
        word = _TYPES.get(kind, "a list, such as [64,64]" if kind.endswith(("Sequence", "list", "Iterable")) else kind)
        expected += [word] if word not in ("", "NoneType", *expected) else []
    expected += [f"one of {', '.join(dict.fromkeys(choices))}"] if len(choices) > 1 else choices
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{value}: expected {' or '.join(expected) or 'another type'}{hint}"


def first_null(config: Any) -> str | None:
    """The first option of model or data, without its dashes, that is null where its type knows no null.

    jsonargparse checks the options further down, but lets these pass.

    Args:
        config: options of a subcommand, parsed.
    """
    for group in ("model", "data"):
        kind = _class(config[group].class_path)
        for option, value in vars(config[group].init_args).items():
            hint = _hint(kind, option)
            if value is None and hint not in (None, Any) and type(None) not in get_args(hint):
                return f"{group}.{option}"
    return None


def _class(path: str) -> Any:
    """The class of an import path, or None."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _group(owner: str, option: str) -> Any:
    """The class whose options stand below an option of a class."""
    return next(iter(_classes(_hint(_class(owner), option))), None)


def _constructors(kind: Any) -> Iterator[Any]:
    """The constructors that take a class's options: its own and, through **kwargs, its bases'."""
    for base in inspect.getmro(kind) if inspect.isclass(kind) else ():
        if "__init__" in vars(base) and base is not object:
            yield vars(base)["__init__"]
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(vars(base)["__init__"]).parameters.values()):
                return


def _options(kind: Any) -> list[str]:
    """Options of a class, less those that the data or the seed set, and what only the code can give."""
    parameters = [p for init in _constructors(kind) for p in inspect.signature(init).parameters.values()]
    named = (p.name for p in parameters if p.default is not p.empty or p.name == "root")
    return [name for name in dict.fromkeys(named) if name not in _SET_ELSEWHERE]


def _hint(kind: Any, option: str) -> Any:
    """Type of a class's option, or None."""
    for init in _constructors(kind):
        if option in inspect.signature(init).parameters:
            return get_type_hints(init).get(option)
    return None


def _classes(hint: Any) -> list[type]:
    """The classes that an option of this type may name: of a callable, what it returns."""
    if inspect.isclass(hint) and not get_args(hint):
        return [] if hint is type(None) else [hint]
    parts = get_args(hint)
    inner = parts[-1:] if parts and isinstance(parts[0], list) else parts
    return [kind for part in inner for kind in _classes(part)]


def _subclasses(kind: type) -> Iterator[type]:
    """All public classes below one."""
    below: type
    for below in kind.__subclasses__():
        if not below.__name__.startswith("_"):
            yield below
        yield from _subclasses(below)


def _root(place: Sequence[str]) -> Any:
    """Type of an option of the command line itself."""
    from lightning.pytorch import Trainer

    from semiseg.data import SegmentationDataModule
    from semiseg.methods import SegmentationMethod

    if place[0] == "trainer":
        return _hint(Trainer, place[-1]) if len(place) > 1 else Trainer
    return {"data": SegmentationDataModule, "model": SegmentationMethod}.get(place[0])


def _top_level(command: str) -> list[str]:
    """Options of a command, in full."""
    groups = ("data",) if command == "data" else ("data", "model", "trainer")
    own = {"data": ("output", "count"), "test": ("run", "checkpoint"), "validate": ("run", "checkpoint")}
    run = () if command == "data" else ("seed_everything", "runs_dir", "experiment", "method_name")
    inner = (f"{group}.{option}" for group in groups for option in _options(_root([group])))
    return ["config", *groups, *own.get(command, ()), *run, *inner]
