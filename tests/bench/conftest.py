"""bench/ is not installed: tests import it from the checkout."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))
