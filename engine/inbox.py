"""What the parent asks of a worker, read on a thread of its own."""

from queue import Empty, SimpleQueue
from threading import Thread

from moetune.engine import protocol


class Inbox:
    """Requests in order, from their end on `Quit` again and again; one is seen to wait while another is served."""

    def __init__(self) -> None:
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        Thread(target=self._read, daemon=True).start()

    def take(self, wait_s: float | None = None) -> protocol.Request | None:
        """The next request; None when there is none within `wait_s`."""
        try:
            line = self._lines.get(timeout=wait_s) if wait_s != 0 else self._lines.get_nowait()
        except Empty:
            return None
        request = protocol.decode_request(line) if line else protocol.Quit()
        if isinstance(request, protocol.Quit):
            self._lines.put(b"")  # the end stays the end, for whoever asks next
        return request

    def waits(self) -> bool:
        """Whether the next request is there already."""
        return not self._lines.empty()

    def _read(self) -> None:
        # Not sys.stdin, which the interpreter would want to lock when the process ends.
        with open(0, "rb", closefd=False) as source:
            for line in source:
                self._lines.put(line)
        self._lines.put(b"")
