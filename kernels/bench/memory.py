"""Memory of another process, as Linux counts it."""

import threading
from pathlib import Path


def status(pid: int, field: str) -> int:
    """Bytes of one line of /proc/PID/status, such as VmHWM (peak resident) or RssAnon."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no {field}")


class Watch:
    """The most anonymous memory a process holds while the block runs, looked up every 2 ms."""

    def __init__(self, pid: int):
        self.pid, self.most, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, status(self.pid, "RssAnon"))

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
