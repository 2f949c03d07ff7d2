"""Builds of the kernels that exist to be checked: emulated, cross-compiled, faulty, sanitised.

emulated   AVX-512, with and without AVX512_BF16, in software: their own sources,
           `simde/immintrin.h` in place of the system's
neon       64-bit Arm from a cross compiler, run by qemu
faulty     one lane wrong on purpose (`faulty.cpp`), to see that a check would notice
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from gptoss_kernels.native import build, library

HERE = Path(__file__).parent
FLAGS = [*(flag for flag in build.FLAGS if flag != "-O3"), "-O2", "-Wno-psabi"]
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
SIMDE = Path("/usr/include/simde/x86/avx512.h")
PACKAGES = {"simde": "libsimde-dev", CROSS: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user-static"}
"""What to install for what is missing (Debian, Ubuntu)."""


class Target(NamedTuple):
    """One instruction set and how to build and start a program of it here."""

    isa: str
    flags: tuple[str, ...] = ()
    """for its own translation unit"""
    everywhere: tuple[str, ...] = ()
    """for every file"""
    compiler: str | None = None
    """None: the one the package is built with"""
    start: tuple[str, ...] = ()
    """what runs its programs"""


PORTABLE = Target("portable")
AVX2 = Target("avx2", ("-mavx2", "-mfma"))
AVX512 = Target(
    "avx512",
    ("-mavx2", "-mfma", f"-I{HERE / 'simde'}"),
    ("-D__builtin_cpu_supports(feature)=1",),
)
AVX512_BF16 = AVX512._replace(isa="avx512_bf16")
EMULATED = (AVX512, AVX512_BF16)
NEON = Target("neon", everywhere=("-static",), compiler=CROSS, start=(EMULATOR,))


def missing(target: Target) -> str | None:
    """What this machine lacks for a target and how to get it, or None."""
    if target in (AVX2, *EMULATED) and platform.machine() != "x86_64":
        return f"{target.isa}: its programs do not run on {platform.machine()}"
    absent = ["simde"] if target in EMULATED and not SIMDE.exists() else []
    tools = [*([target.compiler] if target.compiler else []), *target.start]
    absent += [tool for tool in tools if not shutil.which(tool)]
    if not absent:
        return None
    wanted = " ".join(PACKAGES[name] for name in absent)
    return f"{target.isa}: no {', '.join(absent)} here; apt install {wanted}"


def package(folder: Path, target: Target) -> Path:
    """A copy of `gptoss_kernels` with the library of one target; a folder for PYTHONPATH."""
    source, place = build.HERE.parent, folder / f"package_{target.isa}"
    to = place / source.name
    ignored = shutil.ignore_patterns(build.LIBRARY.name, "__pycache__", "tmp*")
    shutil.copytree(source, to, ignore=ignored)
    made = objects(folder, target)
    linked = to / "native" / build.LIBRARY.name
    run([*_compiler(target), *FLAGS, "-shared", *map(str, made.values()), "-o", str(linked)])
    return place


def replayer(
    folder: Path, target: Target, *, fault: int = 0, extra: Sequence[str] = (), tight: bool = False
) -> list[str]:
    """The command of a `replay` program of one target; `extra` are flags for every file."""
    made = objects(folder, target, fault=fault, extra=extra, tight=tight)
    listed = folder / "kernels.inc"
    listed.write_text("".join(f"KERNEL({name})\n" for name in library.KERNELS))
    sources = [HERE / "replay.cpp", *([HERE / "tight_scratch.cpp"] if tight else [])]
    kind = hashlib.sha256(repr((fault, extra, tight)).encode()).hexdigest()[:12]
    program = folder / f"replay_{target.isa}_{kind}"
    run([
        *_compiler(target), *FLAGS, *target.everywhere, *extra, f"-I{build.SOURCES}", f"-I{folder}",
        *map(str, sources), *map(str, made.values()), "-o", str(program),
    ])  # fmt: skip
    return [*target.start, str(program)]


def pool_stress(folder: Path, extra: Sequence[str]) -> Path:
    """The program `pool_stress`, whose files are compiled with `extra` flags."""
    program = folder / f"pool_stress_{hashlib.sha256(repr(extra).encode()).hexdigest()[:12]}"
    if not program.exists():
        sources = [build.SOURCES / "pool.cpp", HERE / "pool_stress.cpp"]
        command = [*build.compiler(), *FLAGS, *extra, f"-I{build.SOURCES}"]
        run([*command, *map(str, sources), "-o", str(program)])
    return program


def objects(
    folder: Path,
    target: Target,
    *,
    fault: int = 0,
    extra: Sequence[str] = (),
    tight: bool = False,
) -> dict[str, Path]:
    """Compiled sources of one target; those that a folder has already are not compiled again."""
    own, defined = f"isa_{target.isa}", f"-DGW_HAVE_{target.isa.upper()}"
    flags = {path.stem: [] for path in build.SOURCES.glob("*.cpp") if path.stem[:4] != "isa_"}
    flags |= {"isa_portable": [], own: [*target.flags]}
    flags["dispatch"] = [defined, f'-DGW_DIGEST="{build.digest()}"']
    flags["pool"] = ["-Dscratch=roomy_scratch"] if tight else []
    sources = {name: build.SOURCES / f"{name}.cpp" for name in flags}
    if fault:
        sources[own] = HERE / "faulty.cpp"
        flags[own] += ["-O1", *_fault(target, fault)]
    start = [*_compiler(target), *FLAGS, *target.everywhere, *extra, f"-I{build.SOURCES}"]
    commands = {name: [*start, *flags[name], "-c", str(sources[name])] for name in flags}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(_compiled, repeat(folder), commands.values(), commands)
        return dict(zip(commands, made, strict=True))


def replay(
    command: Iterable[str], isa: str, calls: Path, results: Path, *, threads: int = 1
) -> str:
    """Run a `replay` program over recorded calls; what it printed."""
    return run([*command, isa, str(threads), str(calls), str(results)])


def run(command: list[str], **options) -> str:
    """Standard output of a command; a failure carries all it printed."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(
            f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def _fault(target: Target, fault: int) -> list[str]:
    named = {
        "LANES": f'"lanes_{target.isa}.hpp"',
        "KERNELS": f"kernels_{target.isa}",
        "ISA": f'"{target.isa}"',
        "FAULT": str(fault),
    }
    if target is AVX512_BF16:
        named["BASE"] = f'"lanes_{AVX512.isa}.hpp"'
    return [f"-DGW_{name}={value}" for name, value in named.items()]


def _compiled(folder: Path, command: list[str], name: str) -> Path:
    key = hashlib.sha256((build.digest() + shlex.join(command)).encode()).hexdigest()[:12]
    to = folder / f"{name}_{key}.o"
    if not to.exists():
        run([*command, "-o", str(to)])
    return to


def _compiler(target: Target) -> list[str]:
    return [target.compiler] if target.compiler else build.compiler()
