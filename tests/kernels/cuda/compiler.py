"""Every kernel through NVRTC, the compiler that CuPy calls, for one architecture; and the table of what it takes.

    python tests/kernels/cuda/compiler.py            print the table
    python tests/kernels/cuda/compiler.py --write    write it to resources.json

Needs no GPU: cuda-bindings and the compiler's wheel (both in the extra `test`).
"""

import json
import pathlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor

from fastkoop.kernels.cuda import instances
from fastkoop.kernels.cuda.driver import OPTIONS, source
from fastkoop.kernels.cuda.launch import Device

TABLE = pathlib.Path(__file__).with_name("resources.json")
ARCHITECTURES = (75, 80, 90, 100)
ADDED = ("-ftz=true",)  # by CuPy
OPTIONS_HERE = (*OPTIONS, *ADDED, "--ptxas-options=-v")  # which makes ptxas talk


class CompileError(Exception):
    """What the compiler said."""


def kernels_of(architecture):
    """Name expressions that a device of this architecture launches."""
    return instances(Device("", divmod(architecture, 10), 1, 1 << 16, 1 << 16))


def check(call):
    """The results of an NVRTC call, or its error."""
    from cuda.bindings import nvrtc

    code, *results = call
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(code)
    return results[0] if results else None


def version():
    """NVRTC's version as (major, minor)."""
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return [major, minor]


def compile_for(architecture, names=None, text=None):
    """(log, {kernel: {registers, stack, spills}}) of the sources compiled to machine code for sm_`architecture`."""
    log, lowered, _ = build(architecture, names, text)
    return log, resources(log, lowered)


def build(architecture, names=None, text=None):
    """(log, {lowered name: name expression}, machine code) of the sources compiled for sm_`architecture`."""
    from cuda.bindings import nvrtc

    names = kernels_of(architecture) if names is None else names
    program = check(nvrtc.nvrtcCreateProgram((text or source()).encode(), b"fastkoop.cu", 0, [], []))
    for name in names:
        check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = [f"-arch=sm_{architecture}".encode(), *(option.encode() for option in OPTIONS_HERE)]
    (code,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = b" " * check(nvrtc.nvrtcGetProgramLogSize(program))
    check(nvrtc.nvrtcGetProgramLog(program, log))
    log = log.decode().rstrip("\0 \n")
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(log)
    lowered = {check(nvrtc.nvrtcGetLoweredName(program, name.encode())).decode(): name for name in names}
    cubin = b" " * check(nvrtc.nvrtcGetCUBINSize(program))
    check(nvrtc.nvrtcGetCUBIN(program, cubin))
    check(nvrtc.nvrtcDestroyProgram(program))
    return log, lowered, cubin


def virtual_code(architecture, *names, text=None):
    """The PTX of some kernels, compiled as CuPy does: which instructions they ask for."""
    from cuda.bindings import nvrtc

    program = check(nvrtc.nvrtcCreateProgram((text or source()).encode(), b"fastkoop.cu", 0, [], []))
    for name in names:
        check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = [option.encode() for option in (f"-arch=compute_{architecture}", *OPTIONS, *ADDED)]
    check(nvrtc.nvrtcCompileProgram(program, len(options), options))
    code = b" " * check(nvrtc.nvrtcGetPTXSize(program))
    check(nvrtc.nvrtcGetPTX(program, code))
    check(nvrtc.nvrtcDestroyProgram(program))
    return code.decode()


def resources(log, lowered):
    """What ptxas reports, by name expression."""
    found, kernel = {}, None
    for line in log.splitlines():
        if entry := re.search(r"entry function '(\w+)'", line):
            kernel = lowered.get(entry[1], entry[1])
        elif stack := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found.setdefault(kernel, {}).update(stack=int(stack[1]), spills=int(stack[2]) + int(stack[3]))
        elif used := re.search(r"Used (\d+) registers", line):
            found.setdefault(kernel, {})["registers"] = int(used[1])
    return {name.replace("fastkoop::", ""): numbers for name, numbers in sorted(found.items())}


def compile_all():
    """{architecture: (log, {kernel: {registers, stack, spills}})}, two architectures at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ARCHITECTURES, pool.map(compile_for, ARCHITECTURES), strict=True))


def lines(found):
    """The table for people: registers, and bytes spilled where there are any, by kernel and architecture."""
    names = sorted({name for kernels in found.values() for name in kernels})
    heads = [f"sm_{architecture}" for architecture in found]
    yield " ".join([f"{'registers (bytes spilled)':34}", *(f"{head:>10}" for head in heads)])
    for name in names:
        cells = []
        for kernels in found.values():
            if (numbers := kernels.get(name)) is None:
                cells.append("")
            else:
                cells.append(f"{numbers['registers']}" + (f" ({numbers['spills']})" if numbers["spills"] else ""))
        yield " ".join([f"{name:34}", *(f"{cell:>10}" for cell in cells)]).rstrip()


if __name__ == "__main__":
    made = {str(architecture): kernels for architecture, (_, kernels) in compile_all().items()}
    print("\n".join(lines(made)))
    if sys.argv[1:] == ["--write"]:
        TABLE.write_text(json.dumps({"nvrtc": version(), "kernels": made}, indent=1) + "\n")
