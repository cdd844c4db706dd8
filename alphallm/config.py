"""Configs: nested, frozen dataclasses, read from a file, overridden from the command line, kept as JSON.

A config file is Python and defines `get_config()`, which returns a dataclass. A field is named by its dotted path
(`search.num_simulations`). Fields may be int, float, bool, str, `Literal`, tuples of these, another dataclass, and any
of them `| None`. Whatever does not fit raises `ConfigError`, whose message names the field, what was given and what is
allowed. Checks that span fields belong into a dataclass's `__post_init__`, as a ValueError: all overrides of a
dataclass are applied at once, so it sees only finished values.
"""

import dataclasses
import difflib
import importlib.util
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from absl import app, flags, logging

from alphallm.errors import ConfigError, UserError

_T = TypeVar("_T")
_OVERRIDE = re.compile(r"--?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_BOOLS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_ABSENT = "(absent)"


def load_config(path: str | os.PathLike) -> Any:
    """The dataclass that `get_config()` of the Python file `path` returns."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ConfigError(f"There is no config file {path!r}{_files_like(path)}; give the path of a Python file.")
    spec = importlib.util.spec_from_file_location("alphallm_config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"The config file {path!r} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config() if callable(get_config) else None
    except UserError:
        raise
    except Exception as error:
        place = _line_of(path, error)
        raise ConfigError(f"The config file {path!r} fails{place}: {type(error).__name__}: {error}.") from error
    if get_config is None:
        raise ConfigError(f"The config file {path!r} defines no get_config(); it must, and return a dataclass.")
    if not _is_config(config):
        raise ConfigError(f"get_config() of {path!r} returned {config!r}; it must return an instance of a dataclass.")
    return config


def apply_overrides(config: _T, overrides: Mapping[str, Any]) -> _T:
    """A copy of `config` with fields replaced: {"search.num_simulations": "64"}.

    A string is parsed by the field's annotation (tuples as "1,2,3", None as "none"); other values are checked
    against it. Overrides of one dataclass are applied together.
    """
    known = _paths(config)
    for path in overrides:
        if path not in known:
            raise ConfigError(_unknown(path, [*known]))
    return _replace(config, dict(overrides), "")


def to_dict(config: Any) -> dict[str, Any]:
    """`config` as a dict of what JSON knows: nested dicts, lists for tuples."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type[_T], values: Mapping[str, Any], prefix: str = "") -> _T:
    """The inverse of `to_dict`. An absent field takes its default; an unknown one or a wrong type is an error.

    A class with a class method `choose(values)` has it say which of its subclasses the values are of.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix or cls.__name__}: given {values!r}, allowed: the fields of {cls.__name__}.")
    cls = getattr(cls, "choose", lambda values: cls)(values)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    dotted = {name: _join(prefix, name) for name in fields}
    for name in values:
        if name not in fields:
            raise ConfigError(_unknown(_join(prefix, name), [*dotted.values()]))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{dotted[name]} is absent and has no default; allowed: {_allowed(_hints(cls)[name])}.")
    hints = _hints(cls)
    return _build(cls, {name: _check(values[name], hints[name], dotted[name]) for name in values}, prefix)


def differences(old: Any, new: Any) -> list[str]:
    """The fields in which two configs (dataclasses or their dicts) differ, as "path: old -> new"."""
    old_leaves, new_leaves = _leaves(old), _leaves(new)
    found = []
    for path in {**old_leaves, **new_leaves}:
        before, after = old_leaves.get(path, _ABSENT), new_leaves.get(path, _ABSENT)
        # Compared as text so that NaN equals itself and True differs from 1.
        if repr(before) != repr(after):
            found.append(f"{path}: {before} -> {after}")
    return found


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=1` and `--config.a.b 1` out of a command line: (what remains, {"a.b": "1"})."""
    remaining: list[str] = []
    overrides: dict[str, str] = {}
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":
            return [*remaining, argument, *arguments], overrides
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            remaining.append(argument)
            continue
        path, value = match.groups()
        if value is None:
            if not arguments or arguments[0].startswith("--"):
                raise ConfigError(f"{argument} has no value; write {argument}=VALUE.")
            value = arguments.pop(0)
        overrides[path] = value
    return remaining, overrides


def run_main(main: Callable[[list[str], dict[str, str]], Any], takes_overrides: bool = False) -> None:
    """Runs a command and exits: `main(arguments, overrides)` after absl has parsed the flags.

    `arguments` are the positional ones, without the program's name. `overrides` are the `--config.*` ones for
    `apply_overrides`; without `takes_overrides` they are unknown flags. A `UserError` ends the process with its message
    as one line on stderr and with its status, 1 as a rule.
    """
    try:
        argv, overrides = split_overrides(sys.argv) if takes_overrides else (sys.argv, {})
    except UserError as error:
        _exit_with(error)

    def guarded(arguments: list[str]) -> Any:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells of every file that it writes.
        _keep_compiled()
        try:
            return main(arguments[1:], overrides)
        except UserError as error:
            _exit_with(error)
        except Exception:
            if not _is_one_of_several():
                raise
            traceback.print_exc()
            _exit(1)

    app.run(guarded, argv=argv)


def _keep_compiled() -> None:
    """Lets a run that is continued, and the next command, find what was compiled before."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/alphallm/compiled"))


def _exit_with(error: UserError) -> typing.NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    _exit(error.status)


def _exit(status: int) -> typing.NoReturn:
    if _is_one_of_several():
        # At once: JAX would wait, at the exit, for the other processes, which may be lost or wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _is_one_of_several() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(value: Any) -> Any:
    if _is_config(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _paths(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field's dotted path with its value, groups of fields before what is in them."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        path, value = _join(prefix, field.name), getattr(config, field.name)
        found[path] = value
        if _is_config(value):
            found.update(_paths(value, path))
    return found


def _leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    values = to_dict(values) if _is_config(values) else values
    if not isinstance(values, Mapping) or (prefix and not values):
        return {prefix: values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(_leaves(value, _join(prefix, name)))
    return found


def _unknown(path: str, known: list[str]) -> str:
    by_name = [other for other in known if other.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    nearest = by_name or difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    return f"The config has no field {path!r}; the nearest one is {' or '.join(repr(name) for name in nearest[:3])}."


def _replace(config: Any, overrides: dict[str, Any], prefix: str) -> Any:
    hints, changes, inner = _hints(type(config)), {}, {}  # type: ignore[var-annotated]
    for path, value in overrides.items():
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = value
        elif isinstance(value, str):
            changes[name] = _parse(value, hints[name], _join(prefix, name))
        else:
            changes[name] = _check(value, hints[name], _join(prefix, name))
    for name, values in inner.items():
        group = changes.get(name, getattr(config, name))
        if group is None:
            path = _join(prefix, name)
            raise ConfigError(f"{path} is none, so {path}.{next(iter(values))} can not be set; leave one of them out.")
        changes[name] = _replace(group, values, _join(prefix, name))
    current = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
    return _build(type(config), {**current, **changes}, prefix)


def _build(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    try:
        return cls(**values)
    except UserError:
        raise
    except ValueError as error:  # from the dataclass's own __post_init__
        raise ConfigError(f"{prefix or cls.__name__}: {error}") from error


def _allowed(annotation: Any) -> str:
    """What a field of this annotation may be, in words."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    if annotation in words:
        return words[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_allowed(argument) for argument in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"a list, separated by commas, each {_allowed(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} values separated by commas ({', '.join(_allowed(item) for item in arguments)})"
    if dataclasses.is_dataclass(annotation):
        return "one of its fields, " + ", ".join(field.name for field in dataclasses.fields(annotation))
    return f"nothing, since configs do not know the annotation {annotation}"


def _wrong(value: Any, annotation: Any, path: str) -> ConfigError:
    return ConfigError(f"{path}: given {value!r}, allowed: {_allowed(annotation)}.")


def _parse(text: str, annotation: Any, path: str) -> Any:
    """The value that `text` means for a field of this annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    stripped = text.strip()
    if origin in (typing.Union, types.UnionType):
        if stripped.lower() == "none" and type(None) in arguments:
            return None
        return _first_that_fits(_parse, text, annotation, path)
    if origin is Literal:
        for choice in arguments:
            if str(choice) == stripped:
                return choice
    elif origin is tuple:
        items = stripped[1:-1] if stripped[:1] + stripped[-1:] in ("()", "[]") else stripped
        parts = [part for part in items.split(",") if part.strip()]
        return tuple(
            _parse(part, kind, path) for part, kind in zip(parts, _item_kinds(parts, annotation, path), strict=True)
        )
    elif annotation is bool and stripped.lower() in _BOOLS:
        return _BOOLS[stripped.lower()]
    elif annotation is str:
        return text
    elif annotation in (int, float):
        try:
            return annotation(stripped)
        except ValueError:
            raise _wrong(text, annotation, path) from None
    raise _wrong(text, annotation, path)


def _check(value: Any, annotation: Any, path: str) -> Any:
    """`value` if it fits the annotation; lists become tuples, dicts dataclasses, integers floats where asked for."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(_check, value, annotation, path)
    if origin is Literal:
        for choice in arguments:
            if type(choice) is type(value) and choice == value:
                return choice
    elif origin is tuple and isinstance(value, (tuple, list)):
        kinds = _item_kinds(value, annotation, path)
        return tuple(_check(item, kind, path) for item, kind in zip(value, kinds, strict=True))
    elif dataclasses.is_dataclass(annotation):
        if _is_config(value) and isinstance(value, annotation):  # type: ignore[arg-type]
            return value
        if isinstance(value, Mapping):
            return from_dict(annotation, value, path)  # type: ignore[arg-type]
    elif annotation is float and type(value) is int:
        return float(value)
    elif annotation in (int, float, bool, str, type(None)) and type(value) is annotation:
        return value
    raise _wrong(value, annotation, path)


def _first_that_fits(convert: Callable, value: Any, annotation: Any, path: str) -> Any:
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None) or value is None]
    for kind in kinds:
        try:
            return convert(value, kind, path)
        except ConfigError:
            # With one candidate its own message says more than "X or none".
            if len(kinds) == 1 and dataclasses.is_dataclass(kind):
                raise
    raise _wrong(value, annotation, path)


def _item_kinds(items: Sequence, annotation: Any, path: str) -> Sequence[Any]:
    """The annotation of each item of a tuple."""
    kinds = typing.get_args(annotation)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return [kinds[0]] * len(items)
    if len(kinds) != len(items):
        raise _wrong(tuple(items), annotation, path)
    return kinds


def _files_like(path: str) -> str:
    folder = os.path.dirname(path) or "."
    names = sorted(name for name in os.listdir(folder) if name.endswith(".py")) if os.path.isdir(folder) else []
    nearest = difflib.get_close_matches(os.path.basename(path), names, n=1, cutoff=0.0)
    return f" (the nearest one is {os.path.join(os.path.dirname(path), nearest[0])!r})" if nearest else ""


def _line_of(path: str, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    traceback, line = error.__traceback__, None
    while traceback is not None:
        if os.path.abspath(traceback.tb_frame.f_code.co_filename) == os.path.abspath(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f" in line {line}" if line else ""
