"""The benchmarks, as a package that runs in a checkout: `python -m bench` lists them.

bench is not installed. `python -m` puts the checkout first on the path; it is moved to the end, so that an installed
fastkoop stays the one that is measured.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGES = ROOT / "bench" / "pages"

if sys.path and pathlib.Path(sys.path[0] or ".").resolve() == ROOT:
    sys.path.append(sys.path.pop(0))
