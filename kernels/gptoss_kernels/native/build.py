"""Compiles `src/` to `_native.so` beside this file: `python -m gptoss_kernels.native.build`.

One object per instruction set, each with its own flags; which one runs is chosen when the library
is loaded. Needs a C++17 compiler ($CXX, else c++, g++ or clang++) and nothing of torch or Python.
This file imports the standard library only, so that the package build can run it.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SOURCES, LIBRARY = HERE / "src", HERE / "_native.so"
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -pthread".split()
"""Products and sums are fused where the source says so, nowhere else."""
AVX512 = "-mavx2 -mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq".split()
X86 = {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
ISAS: dict[str, dict[str, list[str]]] = {
    "x86_64": X86,
    "amd64": X86,
    "aarch64": {"neon": []},
    "arm64": {"neon": []},
}
"""Instruction sets of a machine beside the portable one, and the compiler flags of each."""


class BuildError(Exception):
    """The library cannot be built; the message says why and what to do."""


def compiler() -> list[str]:
    """The command of a C++ compiler."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise BuildError(
        "no C++17 compiler found. Install one (Debian, Ubuntu: apt install g++; Fedora: dnf "
        "install gcc-c++; macOS: xcode-select --install) or name it in CXX, then run "
        "python -m gptoss_kernels.native.build"
    )


def digest() -> str:
    """Names the sources and flags: a library built from others is not loaded."""
    seen = hashlib.sha256(repr((FLAGS, ISAS)).encode())
    for path in sorted(SOURCES.iterdir()):
        seen.update(path.name.encode() + b"\0" + path.read_bytes())
    return seen.hexdigest()[:16]


def build(library: Path = LIBRARY, *, extra: tuple[str, ...] = ()) -> Path:
    """Compile and put the library in place in one step; `extra` are flags for every file."""
    command = [*compiler(), *FLAGS, *extra]
    isas = _isas(command)
    have = [f"-DGW_HAVE_{isa.upper()}" for isa in isas]
    named: dict[str, list[str]] = {
        path.stem: [] for path in SOURCES.glob("*.cpp") if not path.stem.startswith("isa_")
    }
    named["dispatch"] = [*have, f'-DGW_DIGEST="{digest()}"']
    named |= {f"isa_{isa}": flags for isa, flags in {"portable": [], **isas}.items()}
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = [str(Path(folder) / f"{name}.o") for name in named]
        steps = [
            [*command, *flags, "-c", str(SOURCES / f"{name}.cpp"), "-o", to]
            for (name, flags), to in zip(named.items(), objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, steps))
        linked = Path(folder) / library.name
        _run([*command, "-shared", *objects, "-o", str(linked)])
        linked.replace(library)
    return library


def _isas(command: list[str]) -> dict[str, list[str]]:
    """The instruction sets here that have a source and whose flags the compiler knows."""
    known = ISAS.get(platform.machine().lower(), {})
    probe = [*command, "-fsyntax-only", "-x", "c++", os.devnull]
    return {
        isa: flags
        for isa, flags in known.items()
        if (SOURCES / f"isa_{isa}.cpp").exists()
        and subprocess.run([*probe, *flags], capture_output=True).returncode == 0
    }


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(
            f"the C++ compiler does not start: {error}. Install it or set CXX"
        ) from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr}")


def main() -> None:
    try:
        build()
    except BuildError as error:
        sys.exit(f"native kernels not built: {error}")


if __name__ == "__main__":
    main()
