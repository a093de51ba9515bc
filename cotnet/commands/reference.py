"""`--help` of a program, and the tables of settings in docs/contract.md, from the declarations in cotnet/settings.py.

`python -m cotnet.commands.reference` writes the tables.
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
from cotnet.config.continuing import MAY_CHANGE
from cotnet.settings import EvaluateSettings, Section, Settings, is_nullable, range_in_words

CONTRACT: Final = CONF.parent / "docs" / "contract.md"


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
    """The settings of both programs as Markdown tables, with their defaults."""
    lines = []
    for program, section in (("train", Settings), ("evaluate", EvaluateSettings)):
        defaults = flatten(unresolved(program, []))
        lines += ["", f"| key of `{program}.py` | default | meaning |", "|---|---|---|"]
        for key, meaning in declared(section):
            default = "required" if defaults[key] == "???" else f"`{shown(defaults[key])}`"
            lines.append(f"| `{key}` | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def changes() -> str:
    """What may change when a run continues, as a Markdown table."""
    rows = [
        f"| `{key}` | {'only upwards' if rule == 'grows' else 'to any value'} |" for key, rule in MAY_CHANGE.items()
    ]
    return "\n".join(["", "| key | may change |", "|---|---|", *rows, ""])


BLOCKS: Final = {"settings": tables, "changes": changes}


def contract(text: str) -> str:
    """docs/contract.md with its generated blocks up to date."""
    for name, block in BLOCKS.items():
        begin, end = f"<!-- {name}: written by python -m cotnet.commands.reference -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{block()}\n{end}{rest.partition(end)[2]}"
    return text


def main(path: Path = CONTRACT) -> None:
    """Writes the generated blocks of docs/contract.md."""
    path.write_text(contract(path.read_text()))


if __name__ == "__main__":
    main()
