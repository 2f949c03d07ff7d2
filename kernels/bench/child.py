"""Contestants are child processes that answer one request at a time over a pipe.

All keep their weights mapped while one of them works and the others sleep, each in its own Python.
The standard library is all this file imports: llama.cpp's environment has nothing of ours.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any


class ChildError(Exception):
    """A contestant failed; the message is its own."""


class Child:
    """A contestant, asked from here; leaving the context ends it."""

    def __init__(self, python: Path | str, script: str, *, threads: int):
        self.name, self._log = Path(script).stem, TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, **request: Any) -> Any:
        """Have it do something; waits for the answer."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ChildError(f"{self.name} ended while asked to {do}:\n{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(f"{self.name}, asked to {do}: {answer['error']}")
        return answer["answer"]

    def close(self) -> None:
        """End it and wait until its memory is free."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        return "".join(self._log.readlines()[-12:])


def serve(handlers: Mapping[str, Callable]) -> None:
    """Answer requests until the pipe closes; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": handlers[request.pop("do")](**request)}
        except Exception as error:  # the asking process raises it again
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
