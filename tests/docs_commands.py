"""Whether a command line on a page could be run: programs, commands, options and names exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KNOWN = {"source", "pip", "cd", "git", "docker", "hadolint"}
"""Programs of others, whose arguments are theirs."""


def command_lines(code: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block; comments, pipes and variables are left out."""
    joined = re.sub(r"\\\n\s*", " ", code)
    for line in joined.splitlines():
        words = shlex.split(line.replace("…", "X").replace("...", "X"), comments=True)
        while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
            words = words[1:]
        while words:
            end = next((k for k, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
            if words[:end]:
                yield words[:end]
            words = words[end + 1 :]


def problem(words: list[str]) -> str | None:
    """Return what is wrong with a command, or None."""
    program, rest = words[0], words[1:]
    if program == "dermlens":
        return dermlens_problem(rest)
    if program == "python" and rest[:2] == ["-m", "dermlens"]:
        return dermlens_problem(rest[2:])
    if program == "python":
        return script_problem(rest)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        unknown = [word for word in rest if "=" not in word and word not in targets]
        return f"no target {unknown[0]} in the Makefile" if unknown else None
    return None if program in KNOWN else f"unknown program {program}; say why it is not run"


def script_problem(words: list[str]) -> str | None:
    """Check a script of the repository: the file is there and knows each option."""
    script = ROOT / words[0]
    if not script.is_file():
        return f"no file {words[0]}"
    text = script.read_text("utf-8")
    if "bench_tools" in text:
        text += (ROOT / "benchmarks" / "bench_tools.py").read_text("utf-8")
    unknown = [w for w in words[1:] if w.startswith("--") and f'"{w.split("=")[0]}"' not in text]
    return f"{words[0]} has no option {unknown[0]}" if unknown else None


def dermlens_problem(words: list[str]) -> str | None:
    """Ask the program's own parser; nothing is run."""
    import typer

    from dermlens.cli import app

    command: Any = typer.main.get_command(app)
    path, options = ["dermlens"], list(words)
    while getattr(command, "commands", None) is not None:
        while options[:1] == ["--custom"]:
            options = options[2:]
        if not options or options[0] in ("--help", "--version"):
            return None
        if options[0] not in command.commands:
            return f"no command {' '.join([*path, options[0]])}"
        path.append(options[0])
        command, options = command.commands[options[0]], options[1:]
    if "--help" in options:
        return None
    try:
        context = command.make_context(" ".join(path), options)
    except Exception as error:
        return getattr(error, "message", None) or str(error) or type(error).__name__
    return _values_problem(context.params)


def _values_problem(given: dict[str, Any]) -> str | None:
    """Check names that the commands themselves look up."""
    from dermlens.errors import DermlensError
    from dermlens.explainers.registry import parse_methods
    from dermlens.labels import label_set
    from dermlens.model.configuration import preset
    from dermlens.serve.export import parse_formats

    checks: dict[str, Any] = {
        "methods": parse_methods,
        "preset": preset,
        "formats": lambda text: parse_formats(text.split(",")),
        "classes": label_set,
    }
    for name, check in checks.items():
        if given.get(name) is not None:
            try:
                check(given[name])
            except DermlensError as error:
                return str(error)
    return None
