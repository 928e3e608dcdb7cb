"""One measurement of bench.steps in a process of its own: python -m bench.steps.once SETTING FILE [DATA_DIR]."""

from __future__ import annotations

import json
import pathlib
import sys

from fastkoop.files import write_json

from .measure import once
from .setting import Setting

if __name__ == "__main__":
    given, file, *data_dir = sys.argv[1:]
    setting = Setting(**{key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(given).items()})
    write_json(pathlib.Path(file), once(setting, *(data_dir or [None])))
