"""Run the NumPy examples of a page and of the installed guide, up to the first block that imports a framework.

python .ci/examples.py README.md
"""

import doctest
import importlib.metadata
import importlib.resources
import pathlib
import re
import sys

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FRAMEWORK = re.compile(
    r"^>>> (?:import|from) (?:torch|jax|cupy|fastkoop\.(?:torch_adapter|lightning|huggingface))", re.M
)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def numpy_blocks(text: str) -> str:
    """The blocks before the first that imports a framework."""
    blocks = []
    for block in BLOCK.findall(text):
        if FRAMEWORK.search(block):
            break
        blocks.append(block if block.startswith(">>>") else "")
    return "\n".join(blocks)


def main() -> int:
    import fastkoop

    here = pathlib.Path(fastkoop.__file__)
    if "site-packages" not in here.parts:
        print(f"expected an installed fastkoop, got {here}; install the wheel and run this outside the checkout")
        return 1
    for name in ("numpy", "numba", "scipy", "array-api-compat", "threadpoolctl"):
        print(name, importlib.metadata.version(name))
    pages = {name: pathlib.Path(name).read_text() for name in sys.argv[1:]}
    guide = importlib.resources.files("fastkoop") / "guide"
    pages |= {page.name: page.read_text() for page in guide.iterdir()}
    runner, parser = doctest.DocTestRunner(optionflags=FLAGS), doctest.DocTestParser()
    for name, text in sorted(pages.items()):
        test = parser.get_doctest(numpy_blocks(text), {}, name, name, 0)
        print(f"{name}: {len(test.examples)} examples")
        runner.run(test)
    print(runner.summarize(verbose=False))
    return 1 if runner.failures or runner.tries < 10 else 0


if __name__ == "__main__":
    sys.exit(main())
