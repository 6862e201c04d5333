"""The JSON schema of a study file, with the settings of everything installed, for editors that complete and check YAML.

What belongs to a run may be filled in by an arm, a phase or a file that is extended, and null removes in all of them.
So the run's part is drawn as an overlay: no key is required and each may be null. `ctr check` knows the whole study.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .phases import PhaseEntry
from .schema_walk import schema
from .study_spec import ArmFile, StudyFile, StudyHead
from .train_spec import MATCHED, TrainSpec
from .treatment import ON_ERROR, NoConfig, Registry

_DEFS = "#/$defs/"
_POLICY = "what becomes of a run in which this plugin raises: it fails, or goes on without the plugin, and says so"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Definitions:
    """Definitions of many types under names that cannot collide: `plugin:phase_controller:Factors`."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {}

    def add(self, name: str, kind: Any, overlay: bool = True) -> dict[str, str]:
        """Take the schema of a type with all that it refers to; return a reference to it."""
        whole = dict(schema(kind))
        for inner, body in whole.pop("$defs", {}).items():
            self.all[f"{name}:{inner}"] = _renamed(body, name)
        self.all[name] = _renamed(whole, name)
        if overlay:
            for key in [key for key in self.all if key == name or key.startswith(f"{name}:")]:
                self.all[key] = _loose(self.all[key])
        return {"$ref": _DEFS + name}


def _renamed(body: Any, prefix: str) -> Any:
    """Return a schema whose references lead to the definitions under `prefix`."""
    if isinstance(body, Mapping):
        return {key: _renamed(value, prefix) for key, value in body.items()}
    if isinstance(body, list):
        return [_renamed(value, prefix) for value in body]
    return f"{_DEFS}{prefix}:{body[len(_DEFS) :]}" if isinstance(body, str) and body.startswith(_DEFS) else body


def _loose(body: Any) -> Any:
    """Return a schema of overlays: nothing required, each entry of a mapping may be null."""
    if isinstance(body, list):
        return [_loose(value) for value in body]
    if not isinstance(body, Mapping):
        return body
    kept = {key: value for key, value in body.items() if key not in ("required", "discriminator", "oneOf")}
    loose = {key: value if key in ("default", "const", "enum") else _loose(value) for key, value in kept.items()}
    if "oneOf" in body:  # without its kind an overlay may fit several branches
        loose["anyOf"] = [*loose.get("anyOf", ()), *_loose(body["oneOf"])]
    if isinstance(body.get("properties"), Mapping):
        loose["properties"] = {key: _or_null(_loose(value)) for key, value in body["properties"].items()}
    if isinstance(body.get("additionalProperties"), Mapping):
        loose["additionalProperties"] = _or_null(_loose(body["additionalProperties"]))
    return loose


def _or_null(body: Mapping[str, Any]) -> dict[str, Any]:
    about = {key: body[key] for key in ("description", "default", "title") if key in body}
    return {**about, "anyOf": [{key: value for key, value in body.items() if key not in about}, {"type": "null"}]}


def _mapping(properties: Mapping[str, Any], more: Any = False) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "additionalProperties": more}


def study_schema(registry: Registry) -> dict[str, Any]:
    """Return the schema of a study file for what `registry` holds."""
    found = _Definitions()
    parts = _run_parts(registry, found)
    about = {name: field.description or "" for name, field in StudyFile.model_fields.items()}
    run = {key: {"description": about[key], **parts[key]} for key in ArmFile.model_fields}
    found.add("study", StudyHead, overlay=False)
    head = found.all.pop("study")["properties"]
    matched = {**found.all["train"], "properties": dict(found.all["train"]["properties"])}
    for key in MATCHED:
        del matched["properties"][key]
    found.all["train_of_arm"] = matched
    arm = {**run, "train": {"description": about["train"], "$ref": _DEFS + "train_of_arm"}}
    found.all["arm"] = _mapping({key: _or_null(value) for key, value in arm.items()})
    arms = {"type": "object", "description": about["arms"], "additionalProperties": _or_null({"$ref": _DEFS + "arm"})}
    extends = {"type": "string", "description": about["extends"]}
    nullable = {key: _or_null(value) for key, value in {**head, **run}.items()}
    whole = _mapping({"extends": extends, **nullable, "arms": arms})
    complete = [{"required": ["extends"]}, {"required": ["study", "seeds", "model", "train", "arms"]}]
    return {"$schema": _DIALECT, "title": "A study of ctr", **whole, "anyOf": complete, "$defs": found.all}


def _run_parts(registry: Registry, found: _Definitions) -> dict[str, Any]:
    """Return the schemas of what a run is made of; their definitions go to `found`."""
    train = found.add("train", TrainSpec)
    tasks = [_task(name, kind, found) for name, kind in sorted(registry.tasks.items())]
    models = [
        found.add(f"model:{name}", getattr(kind, "Model", NoConfig)) for name, kind in sorted(registry.tasks.items())
    ]
    adapters = [
        found.add(f"adapter:{name}", kind.Adapter)
        for name, kind in sorted(registry.tasks.items())
        if hasattr(kind, "Adapter")
    ]
    plugins = {name: _plugin(name, kind, found) for name, kind in sorted(registry.plugins.items())}
    phase = found.add("phase", PhaseEntry)
    found.all["train_of_phase"] = {"$ref": _DEFS + "train_of_arm"}
    found.all["phase"]["properties"]["train"] = {"$ref": _DEFS + "train_of_phase"}
    found.all["task"] = {"anyOf": tasks}
    task = {"$ref": _DEFS + "task"}
    return {
        "model": {"anyOf": models},
        "adapter": {"anyOf": adapters} if adapters else {},
        "task": task,
        "tasks": _mapping({}, more=_or_null(task)),
        "train": train,
        "phases": {"type": "array", "items": phase, "minItems": 1},
        "plugins": _mapping(plugins),
        "sweep": _mapping({}, more={"type": "array", "minItems": 1}),
    }


def _task(name: str, kind: Any, found: _Definitions) -> dict[str, str]:
    reference = found.add(f"task:{name}", getattr(kind, "Config", NoConfig))
    body = found.all[f"task:{name}"]
    summary = (kind.__doc__ or "").strip().split("\n")[0]
    body["properties"] = {"kind": {"const": name, "description": summary}, **body.get("properties", {})}
    return reference


def _plugin(name: str, kind: Any, found: _Definitions) -> dict[str, Any]:
    reference = found.add(f"plugin:{name}", getattr(kind, "Config", NoConfig))
    policy = {"enum": ["fail", "disable"], "default": "fail", "description": _POLICY}
    found.all[f"plugin:{name}"].setdefault("properties", {})[ON_ERROR] = _or_null(policy)
    summary = (kind.__doc__ or "").strip().split("\n")[0]
    return _or_null({"description": summary, **reference})
