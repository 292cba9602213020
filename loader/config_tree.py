"""The tree of plain values behind an experiment: safe YAML from a file, `key=value` overrides put into it.

Owns syntax and its errors. What the keys mean, and which there are, is `loader.config`'s.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from loader.errors import ConfigError


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML that keeps dates as text, reads 1e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 (a SafeLoader)


def read(path: Path) -> dict[str, Any]:
    """The sections of a file; an empty file has none.

    Raises:
        ConfigError: It cannot be read, is not YAML, or holds something else than sections.
    """
    try:
        tree = _parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: {reason.lower()}: give the path of an experiment file, such as configs/quickstart.yaml") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {_yaml_problem(error)}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, not sections such as lake, data and train")
    return tree


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{problem or str(error).splitlines()[0]}"


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split `dotted.path=value` into the path and the value, which is YAML."""
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"override {text!r} is not key=value: write for example train.epochs=2")
    try:
        return path, _parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not YAML: {_yaml_problem(error)}") from error


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any, override: str) -> None:
    """Set one value deep in the tree; sections on the way are made, list entries must exist."""
    here: Any = tree
    for depth, key in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                raise ConfigError(f"override {override!r}: {'.'.join(path[:depth])} has entries 0 to {len(here) - 1}, not {key!r}")
            if last:
                here[int(key)] = value
            here = here[int(key)]
            continue
        if not isinstance(here, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(path[:depth])} is a value, not a section")
        if last:
            here[key] = value
        elif here.get(key) is None:
            here[key] = {}
        here = here[key]
