"""`--help` of a program, and the tables of settings in docs/contract.md, from the declarations of the settings.

`python -m cotnet.commands.reference` writes the tables.
"""

import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from cotnet import evaluate_settings, settings
from cotnet.config.build import TARGETS, in_words, plain, setting_of, settings_of_target, shown, target_of
from cotnet.config.compose import CONF, Config, flatten, unresolved
from cotnet.config.continuing import MAY_CHANGE
from cotnet.config.plugins import admit
from cotnet.dense import settings as dense_settings
from cotnet.errors import InputError
from cotnet.settings import is_nullable
from cotnet.sweeps.space import SweepSettings, read

CONTRACT: Final = CONF.parent / "docs" / "contract.md"


def declared(target: Callable[..., Any] = settings.Settings, prefix: str = "") -> dict[str, str]:
    """The meaning, range included, of each setting that a dataclass, a function or a class declares, by its key."""
    hints, _, _ = settings_of_target(target)
    found = {f"{prefix}{name}": meaning(hint) for name, hint in hints.items() if setting_of(hint)}
    for name, hint in hints.items():
        found |= declared(hint, f"{prefix}{name}.") if isinstance(hint, type) and is_dataclass(hint) else {}
    return found


def meaning(hint: Any) -> str:
    """What the type of a setting declares: its meaning, its choices and range, and whether it may be null."""
    known, kind = setting_of(hint), plain(hint)
    if known is None:
        return ""
    options = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    choices = "" if all(shown(option) in known.meaning for option in options) else in_words(kind)
    null = "or null" if is_nullable(kind) and "null" not in known.meaning else ""
    return "; ".join(filter(None, [known.meaning, choices, f"{known.range} {null}".strip()]))


def of_member(group: str, node: Mapping[str, Any]) -> dict[str, str]:
    """The meaning of each key of a chosen member of a group, or why it cannot be read here."""
    try:
        target = target_of(node, group)
    except InputError as error:  # a library that is not installed
        return {f"{group}._target_": str(error)}
    shared = {"backbone": settings_of_target(settings.Pretrained)[0], "optimizer": settings.OPTIMIZER}.get(group, {})
    known = declared(target, f"{group}.") | {f"{group}.{name}": meaning(hint) for name, hint in shared.items()}
    library = not target.__module__.startswith(("cotnet.", "data."))
    rest = f"a setting of {node['_target_']}" if library else meaning(settings_of_target(target)[2])
    keys = {f"{group}.{name}": known.get(f"{group}.{name}", rest) for name in node}
    return keys | {f"{group}._target_": "import path of what the other keys go to"}


def meanings(config_name: str, config: Config) -> dict[str, str]:
    """The meaning of each setting of a composed configuration by its key."""
    whole = (settings.Settings, dense_settings.DenseSettings)  # what both have: as the configuration's task means it
    found = declared(SweepSettings, "sweep.")
    for sections in whole if "task" in config else reversed(whole):
        found |= declared(sections)
    for group in TARGETS:
        if node := config.get(group):  # without a member, as evaluate.py has it: the standard one
            found |= of_member(group, node if "_target_" in node else {**unresolved("train", [])[group], **node})
    found |= {"evaluate": of_evaluate, "look": of_look, "export": of_export}.get(config_name, dict)()
    return {key: found.get(_declared_key(key), "") for key in flatten(config)}


def of_evaluate() -> dict[str, str]:
    """The meaning of each key that evaluate.py alone has."""
    own = declared(evaluate_settings.EvaluateSettings) | declared(evaluate_settings.EvaluationData, "data.")
    own |= declared(evaluate_settings.AverageSettings, "average.")
    dense = declared(dense_settings.DenseData, "data.")
    own |= {f"data.{name}": dense[f"data.{name}"] for name in ("eval_short_side", "eval_max_side")}
    return own | declared(evaluate_settings.SuiteSettings, "suite.")


def of_look() -> dict[str, str]:
    """The meaning of each key that cotnet/look.py alone has."""
    from cotnet.commands.eval_look import LookSettings  # imports torch, which takes seconds

    shared = declared(evaluate_settings.EvaluationData, "data.")
    return declared(LookSettings) | {"data.preprocessing": shared["data.preprocessing"]}


def of_export() -> dict[str, str]:
    """The meaning of each key that cotnet/export alone has."""
    from cotnet.commands.export import ExportSettings  # imports torch, which takes seconds

    return declared(ExportSettings) | declared(evaluate_settings.EvaluationData, "data.")


def _declared_key(key: str) -> str:
    return re.sub(r"^(sweep\.space|evaluation\.extra|backbone\.operator)\..*", r"\1", key)


def help_page(config_name: str, overrides: list[str], about: str) -> str:
    """Groups with their members, then every setting with its value and meaning."""
    single, varied = read(overrides)  # of a --multirun
    config = unresolved(config_name, single)
    admit(config.get("plugins", ()))
    lines = [about, "", "Groups, chosen by group=member:"]
    for group in re.findall(r"^  - (\w+):", (CONF / f"{config_name}.yaml").read_text(), re.MULTILINE):
        lines.append(_wrapped(f"  {group + ':':<14}{', '.join(members(group))}", 16))
    lines += ["", "Settings, changed by key=value:"]
    known = meanings(config_name, config)
    for key, value in (flatten(config) | {p.key: p.text for p in varied if p.key in known}).items():
        lines.append(_wrapped(f"  {f'{key}={shown(value)}':<44} {known[key]}".rstrip(), 47))
    return "\n".join(lines)


def members(group: str) -> list[str]:
    """The names that can be chosen in a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _wrapped(line: str, indent: int) -> str:
    width = max(shutil.get_terminal_size((120, 24)).columns, 80)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def tables() -> str:
    """The settings of both programs as Markdown tables, with their defaults."""
    lines = []
    dense = declared(dense_settings.DenseData, "data.")
    programs: tuple[tuple[str, str, dict[str, str], list[str]], ...] = (
        ("train", "train.py", declared(), []),
        ("train", "train.py task=detection, task=segmentation", dense, ["task=detection"]),
        ("evaluate", "evaluate.py", of_evaluate(), ["suite=imagenet"]),
        ("look", "python -m cotnet.look", of_look(), []),
        ("export", "python -m cotnet.export", of_export(), []),
    )
    for program, command, keys, given in programs:
        defaults = flatten(unresolved(program, given))
        lines += ["", f"| key of `{command}` | default | meaning |", "|---|---|---|"]
        lines += [f"| `{key}` | {_default(defaults[key])} | {text} |" for key, text in keys.items()]
    return "\n".join([*lines, ""])


def group_tables() -> str:
    """The settings of the groups' members as Markdown tables, each with the default of the first member that has it."""
    standard = dict(re.findall(r"^  - (\w+): (\w+)$", (CONF / "train.yaml").read_text(), re.MULTILINE))
    names = {group: sorted(members(group), key=standard[group].__ne__) for group in (*TARGETS, "sweep")}
    rows: dict[str, dict[tuple[str, str], tuple[Any, set[str]]]] = {group: {} for group in names}
    for turn in zip_longest(*names.values()):  # one member of every group at a time, the standard ones first
        chosen = {group: name for group, name in zip(names, turn, strict=True) if name}
        config = unresolved("train", [f"{group}={name}" for group, name in chosen.items()])
        known = meanings("train", config)
        for group, name in chosen.items():
            for key, value in (flatten({group: config[group]}) if group in config else {}).items():
                rows[group].setdefault((_declared_key(key), known[key]), (value, set()))[1].add(name)
    lines = []
    for group, found in rows.items():
        lines += ["", f"| key of `{group}` | default | members | meaning |", "|---|---|---|---|"]
        for (key, text), (value, having) in found.items():
            lines.append(f"| `{key}` | {_default(value)} | {_which(having, names[group])} | {text} |")
    return "\n".join([*lines, ""])


def _which(having: set[str], names: list[str]) -> str:
    missing = sorted(set(names) - having)
    if len(missing) < len(having):
        return "all but " + ", ".join(missing) if missing else "all"
    return ", ".join(sorted(having))


def _default(value: Any) -> str:
    return "required" if value == "???" else f"`{shown(value)}`"


def changes() -> str:
    """What may change when a run continues, as a Markdown table."""
    words = {"grows": "only upwards", "moves": "to another path of the same images", "free": "to any value"}
    rows = [f"| `{key}` | {words[rule]} |" for key, rule in MAY_CHANGE.items()]
    return "\n".join(["", "| key | may change |", "|---|---|", *rows, ""])


BLOCKS: Final = {"settings": tables, "groups": group_tables, "changes": changes}


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
