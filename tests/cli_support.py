"""Calling the program from tests, and looking at what it leaves."""

import contextlib
import hashlib
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from dermlens.cli import main


class Outcome(NamedTuple):
    """What one call of the program left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def dermlens(*arguments: object) -> Outcome:
    """Call the program in this process as a shell would."""
    out, err = io.StringIO(), io.StringIO()
    line = ["dermlens", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", line),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()) for text in (out, err)]
    return Outcome(int(stop.value.code or 0), *plain)


def content(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, with a checksum of files."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in folder.rglob("*")
    }


def printed_paths(out: str) -> list[Path]:
    """The paths that a command said it wrote."""
    found = re.findall(r"(?:Wrote|Bundle:|Open) (\S+?)\.?(?: Next:.*)?$", out, re.MULTILINE)
    return [Path(name) for name in found]


def refused(outcome: Outcome, words: str) -> None:
    """Exit code 2 and one sentence on standard error, no traceback."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    assert "Error: " in outcome.err or "Usage: " in outcome.err
    flat = re.sub(r"[\s│]+", " ", outcome.err)
    assert words in flat, outcome.err
    if outcome.err.startswith("Error: "):
        assert outcome.err.strip().endswith(".") and outcome.err.count("\n") == 1
