"""What was computed for visitors, kept in memory alone, for few sessions and for short."""

import threading
import time
from collections import OrderedDict
from typing import Any

from dermlens.serve.app_uploads import SECONDS_KEPT

SESSIONS_KEPT = 16


class Results:
    """What was computed for the visitors of the last minutes, in memory."""

    def __init__(self, sessions: int = SESSIONS_KEPT, seconds: float = SECONDS_KEPT) -> None:
        self._sessions, self._seconds = sessions, seconds
        self._kept: OrderedDict[str, dict[str, tuple[float, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, session: str | None, name: str, value: Any) -> None:
        """Keep a value under a name."""
        if session is None:
            return
        with self._lock:
            self._expire()
            self._kept.setdefault(session, {})[name] = (time.monotonic(), value)
            self._kept.move_to_end(session)
            while len(self._kept) > self._sessions:
                self._kept.popitem(last=False)

    def get(self, session: str | None, name: str) -> Any:
        """Return a kept value, or None."""
        with self._lock:
            self._expire()
            return self._kept.get(session or "", {}).get(name, (0.0, None))[1]

    def forget(self, session: str | None) -> None:
        """Drop everything of a session."""
        with self._lock:
            self._kept.pop(session or "", None)

    def _expire(self) -> None:
        oldest = time.monotonic() - self._seconds
        for session in list(self._kept):
            fresh = {k: v for k, v in self._kept[session].items() if v[0] >= oldest}
            if fresh:
                self._kept[session] = fresh
            else:
                del self._kept[session]
