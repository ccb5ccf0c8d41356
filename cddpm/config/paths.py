"""Settings by dotted path."""

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from cddpm.config.sections import Frozen


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted paths of settings below ``model``."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section:
            yield from field_paths(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, None for a plain setting."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    found = [o for o in options if isinstance(o, type) and issubclass(o, Frozen)]
    return found[0] if found else None


def annotation_at(model: type[BaseModel], path: str) -> Any:
    """What the setting at a dotted path may be. Raises ``KeyError`` for a path that is none."""
    section, _, rest = path.partition(".")
    field = model.model_fields[section]
    if not rest:
        return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    inner = section_of(field.annotation)
    if inner is None:
        raise KeyError(path)
    return annotation_at(inner, rest)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted path."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def value_at(config: BaseModel, path: str) -> Any:
    """The setting at a dotted path. Raises ``AttributeError`` for a path that is none."""
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def changed(config: BaseModel, default: BaseModel) -> dict[str, Any]:
    """Settings of ``config`` that differ from ``default``, as plain data by dotted path; a dict is taken apart by its keys."""
    found: dict[str, Any] = {}
    for path in field_paths(type(config)):
        if value_at(config, path) != value_at(default, path):
            *section, name = path.split(".")
            holder = value_at(config, ".".join(section)) if section else config
            value = holder.model_dump(mode="json", include={name}, by_alias=True)[name]
            if isinstance(value, dict):  # a space: what its parameters leave out is left out
                value = holder.model_dump(mode="json", include={name}, by_alias=True, exclude_defaults=True)[name]
            found |= {f"{path}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {path: value}
    return found


def shown(value: Any) -> str:
    """A value as messages quote it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
