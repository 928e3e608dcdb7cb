"""From what `--problem` names to a problem: a built-in one, a file's or a module's, or an object."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

from ...checks import InputError
from . import factories
from .checked import CheckedProblem, ProblemError, last_line


def open_problem(config) -> CheckedProblem:
    """The problem of a config.

    Raises:
        InputError: no such problem, file, module or name; or it could not be made.
    """
    problem = config.problem
    if not isinstance(problem, str):
        return CheckedProblem(_instance(problem, type(problem).__name__), config.device)
    if problem in factories():
        return CheckedProblem(factories()[problem](config), config.device)
    place, colon, name = problem.rpartition(":")
    if not (colon and place and name):
        raise InputError(
            f"problem: expected one of {', '.join(map(repr, factories()))}, or FILE.py:NAME or MODULE:NAME, got "
            f"{problem!r}"
        )
    for option in ("batch_size", "validation"):
        if getattr(config, option):
            raise InputError(f"{option}: {problem} makes its batches; leave --{option.replace('_', '-')} out")
    module = _file(place) if place.endswith(".py") else _module(place)
    try:
        answer = getattr(module, name)
    except AttributeError:
        raise InputError(f"problem: {place} has no {name!r}") from None
    return CheckedProblem(_instance(answer, name), config.device)


def _file(place: str):
    """A file as a module; other files of its folder can be imported from it, as when it is run."""
    path = Path(place).expanduser()
    if not path.is_file():
        raise InputError(f"problem: there is no file {place!r}; expected FILE.py:NAME")
    name = f"fastkoop_problem_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # models that are pickled or copied look their classes up here
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ProblemError(f"problem: {place} failed to load: {last_line(error)}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _module(place: str):
    try:
        return importlib.import_module(place)
    except ImportError as error:
        raise InputError(f"problem: cannot import {place!r} ({error}); expected FILE.py:NAME or MODULE:NAME") from None
    except Exception as error:
        raise ProblemError(f"problem: {place} failed to load: {last_line(error)}") from error


def _instance(answer, name: str):
    """The problem itself, if it is not a class or a function that makes it."""
    if not (inspect.isclass(answer) or inspect.isfunction(answer)):
        return answer
    try:
        return answer()
    except InputError:
        raise
    except Exception as error:
        raise ProblemError(f"problem: {name}() failed: {last_line(error)}") from error
