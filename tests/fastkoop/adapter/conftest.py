"""Make trails.py importable as `trails`: importlib mode puts no test folder on sys.path."""

import importlib.util
import pathlib
import sys


def load_trails() -> None:
    """As tests/conftest.py does for the shared cases."""
    spec = importlib.util.spec_from_file_location("trails", pathlib.Path(__file__).with_name("trails.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["trails"] = module
    spec.loader.exec_module(module)


if importlib.util.find_spec("torch"):
    load_trails()
