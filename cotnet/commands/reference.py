"""`--help` of a program and the table of settings in docs/contract.md, from the declarations in cotnet/settings.py.

`python -m cotnet.commands.reference` writes the table.
"""

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cotnet.config.build import shown
from cotnet.config.compose import CONF, flatten, unresolved
from cotnet.settings import EvaluateSettings, Section, Settings, is_nullable, range_in_words

CONTRACT: Final = CONF.parent / "docs" / "contract.md"
BEGIN, END = "<!-- settings: written by python -m cotnet.commands.reference -->", "<!-- end of settings -->"


def declared(section: type[Section] = Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting's key and meaning, with its range and whether it may be null."""
    for field in dataclasses.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            yield from declared(field.type, f"{prefix}{field.name}.")
            continue
        meaning, bounds = field.metadata["meaning"], field.metadata["bounds"]
        allowed = [range_in_words(bounds)] if bounds else []
        allowed += ["or null"] if is_nullable(field.type) and "null" not in meaning else []
        yield f"{prefix}{field.name}", "; ".join([meaning, " ".join(allowed)]) if allowed else meaning


def help_page(config_name: str, overrides: list[str], about: str) -> str:
    """Groups with their members, then every setting with its value and meaning."""
    meanings = dict(declared()) | (dict(declared(EvaluateSettings)) if config_name == "evaluate" else {})
    settings: dict[str, Any] = flatten(unresolved(config_name, overrides))
    lines = [about, "", "Groups, chosen by group=member:"]
    for group in re.findall(r"^  - (\w+):", (CONF / f"{config_name}.yaml").read_text(), re.MULTILINE):
        members = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        lines.append(_wrapped(f"  {group + ':':<14}{', '.join(members)}", 16))
    lines += ["", "Settings, changed by key=value:"]
    for key, value in settings.items():
        lines.append(_wrapped(f"  {f'{key}={shown(value)}':<44}{meanings.get(key, '')}".rstrip(), 46))
    return "\n".join(lines)


def _wrapped(line: str, indent: int) -> str:
    width = max(shutil.get_terminal_size((120, 24)).columns, 80)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_long_words=False)


def tables() -> str:
    """The settings of both programs as Markdown tables."""
    lines = [BEGIN]
    for program, section in (("train.py", Settings), ("evaluate.py", EvaluateSettings)):
        rows = [f"| `{key}` | {meaning} |" for key, meaning in declared(section)]
        lines += ["", f"| key of `{program}` | meaning |", "|---|---|", *rows]
    return "\n".join([*lines, "", END])


def contract(text: str) -> str:
    """docs/contract.md with the table that belongs into it."""
    before, _, rest = text.partition(BEGIN)
    return before + tables() + rest.partition(END)[2]


def main(path: Path = CONTRACT) -> None:
    """Writes the table into docs/contract.md."""
    path.write_text(contract(path.read_text()))


if __name__ == "__main__":
    main()
