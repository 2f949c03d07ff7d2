"""llama.cpp's own environment, built from PyPI, and the checkpoint converted for it.

    python kernels/bench/rivals.py [--folder out/bench]

Nothing of it enters the project's environment. Building takes minutes; it is done once.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import machine
import typer

PINNED = ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6")
CMAKE = "-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF"
"""For this very CPU, threads by OpenMP, no image models."""


class RivalMissing(Exception):
    """A rival cannot be had here; the message says why."""


def environment(folder: Path) -> Path:
    """The Python of the rivals' environment, built where it is not there yet for this CPU."""
    home = (folder / "rivals").absolute()
    python, stamp = home / "bin" / "python", home / "installed"
    wanted = "\n".join((*PINNED, CMAKE, machine.machine(), machine.instructions()))
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print("building llama.cpp from PyPI, once; this takes minutes", flush=True)
    venv.create(home, with_pip=True, clear=True)
    install = [python, "-m", "pip", "install", "--no-binary", "llama-cpp-python", *PINNED]
    options = {"CMAKE_ARGS": CMAKE, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    finished(install, "llama-cpp-python does not install", os.environ | options)
    stamp.write_text(wanted)
    return python


def gguf_of(checkpoint: Path, python: Path) -> Path:
    """The checkpoint as GGUF beside it, converted where it is not there yet or older."""
    target = checkpoint.with_name(checkpoint.name + ".gguf")
    sources = [*checkpoint.glob("*.safetensors"), Path(__file__).with_name("to_gguf.py")]
    if target.exists() and all(target.stat().st_mtime > f.stat().st_mtime for f in sources):
        return target
    print(f"converting {checkpoint.name} to GGUF", flush=True)
    script = Path(__file__).with_name("to_gguf.py")
    finished([python, script, checkpoint, target], f"{checkpoint.name} does not convert")
    return target


def finished(command: list, wrong: str, environ: dict[str, str] | None = None) -> None:
    """Run a command to its end; raises with its last words."""
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        lines = [
            line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()
        ]
        said = "\n".join(lines[-4:] or done.stderr.splitlines()[-4:])
        raise RivalMissing(f"{wrong}:\n{said}")


def main(folder: Path = Path("out/bench")) -> None:
    """Build the environment."""
    try:
        print(environment(folder))
    except RivalMissing as why:
        sys.exit(str(why))


if __name__ == "__main__":
    typer.run(main)
