"""Print pip constraints that hold every core dependency to the oldest release that pyproject.toml allows.

python .ci/oldest.py pyproject.toml
"""

import re
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    dependencies = tomllib.load(file)["project"]["dependencies"]
for dependency in dependencies:
    name, bound = re.fullmatch(r"([\w-]+)>=([\d.]+)", dependency).groups()
    print(f"{name}=={bound}.*")
