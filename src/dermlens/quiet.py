"""TensorFlow and LiteRT without the log lines that they write before any setting counts."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


@contextmanager
def no_standard_error() -> Iterator[None]:
    """Send what native code writes to standard error to nowhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Quiet(MetaPathFinder):
    """Finds TensorFlow as usual, and silences the run of its module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def silently(module: ModuleType) -> None:
                with no_standard_error():
                    run(module)

            loader: Any = spec.loader
            loader.exec_module = silently
        return spec


def quiet_tensorflow() -> None:
    """Let TensorFlow be imported silently, whenever that will be; errors are raised as ever."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
    # Its warnings (of retracing) name objects by their addresses.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if "tensorflow" not in sys.modules and not any(isinstance(f, _Quiet) for f in sys.meta_path):
        sys.meta_path.insert(0, _Quiet())
