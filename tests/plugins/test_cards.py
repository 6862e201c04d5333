"""Every built-in family has a card, and the card speaks of every setting."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import EntryPoint, distribution
from pathlib import Path

import pytest
from pydantic import BaseModel

HEADINGS = ["What it does", "When", "Settings", "What to watch", "Source", "What we measured"]
BUILT_IN = sorted(distribution("ctr-engine").entry_points.select(group="ctr.plugins"))


def card(entry: EntryPoint) -> str:
    folder = Path(str(import_module(entry.module).__file__)).parent
    assert folder.parent.name == "plugins"
    return (folder / "README.md").read_text()


def settings(config: type[BaseModel]) -> set[str]:
    """Name every setting of a Config, and every setting of a setting."""
    names = set(config.model_fields)
    for field in config.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= settings(field.annotation)
    return names


def test_the_built_ins_are_the_folders() -> None:
    plugins = Path(__file__).parents[2] / "plugins"
    folders = {path.name for path in plugins.iterdir() if (path / "__init__.py").is_file()}
    assert {entry.module.rsplit(".", 1)[-1] for entry in BUILT_IN} == folders


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.name)
def test_a_card_has_six_parts_and_each_says_something(entry: EntryPoint) -> None:
    parts = re.split(r"^## (.*)$", card(entry), flags=re.MULTILINE)
    assert parts[1::2] == HEADINGS
    assert all(len(text.split()) > 10 for text in parts[2::2])


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.name)
def test_a_card_names_the_plugin_and_every_setting(entry: EntryPoint) -> None:
    text = card(entry)
    assert f"`{entry.name}`" in text or text.startswith(f"# {entry.name}\n")
    part = text.split("## Settings")[1].split("\n## ")[0]
    missing = [name for name in settings(entry.load().Config) if f"`{name}`" not in part]
    assert not missing, f"the card of {entry.name} does not speak of {missing}"


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.name)
def test_every_setting_has_a_description(entry: EntryPoint) -> None:
    fields = entry.load().Config.model_fields
    assert not [name for name, field in fields.items() if not (field.description or "").strip()]
