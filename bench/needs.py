"""What a benchmark needs before anything of FastKoop can be imported, said in one sentence."""

from __future__ import annotations

import importlib

PROJECTS = {"array_api_compat": "array-api-compat"}  # whose package has another name


def missing() -> str | None:
    """What `import fastkoop` lacks, and how to carry it to a machine without a network; None if nothing.

    >>> missing()
    """
    try:
        importlib.import_module("fastkoop")
    except ImportError as error:  # its kernels, too, where the checkout is on the path but not installed
        name = (error.name or "fastkoop").partition(".")[0]
        if name == "fastkoop":
            return (
                "fastkoop is not installed; in the checkout run `pip install --no-deps --no-build-isolation -e .`, or "
                "carry a wheel: `pip wheel --no-deps -w wheels .` there, `pip install --no-deps wheels/*.whl` here"
            )
        project = PROJECTS.get(name, name)
        return (
            f"{project} is missing, which FastKoop needs; `pip install {project}`, or carry a wheel: `pip download "
            f"--no-deps -d wheels {project}` where there is a network, `pip install --no-deps wheels/*.whl` here"
        )
    return None
