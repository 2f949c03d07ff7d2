"""Fetch OpenAI's own torch reference, which the tests marked `oracle` compare with.

    python tests/oracle/fetch.py

The package gpt-oss 0.0.9 asks for Python 3.12, but its torch part needs only torch and safetensors.
So the wheel is not installed: it is unpacked into `.oracle/` in the repository root.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "gpt-oss==0.0.9"
FOLDER = Path(__file__).parents[2] / ".oracle"


def main() -> None:
    if (FOLDER / "gpt_oss" / "torch" / "model.py").exists():
        print(f"{PACKAGE} is there already: {FOLDER}")
        return
    FOLDER.mkdir(exist_ok=True)
    download = f"download --no-deps --only-binary=:all: --python-version 3.12 --dest {FOLDER}"
    subprocess.run([sys.executable, "-m", "pip", *download.split(), PACKAGE], check=True)
    (wheel,) = FOLDER.glob("gpt_oss-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("gpt_oss/")]
        archive.extractall(FOLDER, names)
    print(f"{wheel.name}: {len(names)} files unpacked into {FOLDER}")


if __name__ == "__main__":
    main()
