"""From YAML to a configuration that fits together: read, override by dotted path, validate, and explain every fault at once."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from cddpm.config.faults import faults
from cddpm.config.sections import takes
from cddpm.config.settings import Settings, annotation_at, field_paths, section_of, shown
from cddpm.errors import ConfigError
from cddpm.place import home
from cddpm.storage import is_uri
from cddpm.text.likeness import did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class ExperimentConfig(Settings):
    """A whole experiment: data, networks, training, scoring, evaluation, search.

    Raises ``ValidationError`` that lists every combination of settings that cannot be (``faults``).
    """

    @property
    def objective_datasets(self) -> tuple[str, ...]:
        """Data sets that the objective is the mean of."""
        return self.search.datasets or self.data.unhealthy

    @model_validator(mode="after")
    def _possible(self) -> Self:
        found = list(faults(self))
        if found:
            raise ValueError("\n".join(found))
        return self


FIELDS = frozenset(field_paths(ExperimentConfig))
"""Dotted paths of all settings."""


_SQLITE = "sqlite:///"
_TEXT = ("string_type", "path_type")
"""Faults of what should be text."""


class _ClosedLoader(yaml.SafeLoader):
    """Plain data only, and no key twice in one mapping (YAML would silently keep the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is set twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Read a YAML file, apply ``overrides`` (dotted path -> value), resolve its paths.

    Raises ``ConfigError`` that lists every fault with file and dotted path.
    """
    raw = read_yaml(path)
    merged = override(raw, overrides or {}, str(path))
    return resolve_paths(parse(merged, str(path)), Path.cwd())


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, plain data only. Raises ``ConfigError``."""
    try:
        raw = yaml.load(path.read_text(), Loader=_ClosedLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds {type(raw).__name__}, a mapping of settings is needed")
    return raw


def parse(raw: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Validate plain data. Raises ``ConfigError`` listing every fault with ``source`` and dotted path."""
    try:
        return ExperimentConfig.model_validate(raw)
    except ValidationError as error:
        faults = [*explain(error, source), *_faults_behind(error, raw, source)]
        raise ConfigError("\n".join(faults)) from None


def _faults_behind(error: ValidationError, raw: Mapping[str, Any], source: str) -> Iterator[str]:
    """Faults between settings, which pydantic looks for only when each setting is right by itself.

    The faulty settings are left out for this second look, and so is what it then says about them.
    """
    places = [fault["loc"] for fault in error.errors(include_url=False) if fault["loc"]]
    if not places:
        return
    rest = _deep_copy(raw)
    for place in places:
        _remove(rest, place)
    try:
        ExperimentConfig.model_validate({"name": "unnamed", **rest})
    except ValidationError as second:
        doubtful = [".".join(str(part) for part in place[:2]) for place in places]
        yield from (line for line in explain(second, source) if not any(path in line for path in doubtful))


def _remove(nested: dict[str, Any], place: tuple[int | str, ...]) -> None:
    inner = nested.get(place[0]) if isinstance(place[0], str) else None
    if len(place) > 1 and isinstance(inner, dict) and place[1] in inner:
        _remove(inner, place[1:])
    elif isinstance(place[0], str):
        nested.pop(place[0], None)


def override(raw: Mapping[str, Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of the nested mapping ``raw`` with ``values`` put in by dotted path. Raises ``ConfigError`` on unknown paths."""
    merged = _deep_copy(raw)
    unknown = [
        f"{source}: {path}: no such setting{did_you_mean(path, FIELDS)}" for path in values if path not in FIELDS
    ]
    if unknown:
        raise ConfigError("\n".join(unknown))
    for path, value in values.items():
        *sections, name = path.split(".")
        target = merged
        for section in sections:
            if target.get(section) is None:
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise ConfigError(f"{source}: {section}: holds {target!r}; a mapping of settings is needed")
        target[name] = value
    return merged


def setting(path: str, text: str, source: str) -> Any:
    """The value of the setting ``path`` that ``text`` (YAML) writes. Raises ``ConfigError`` if it is no YAML.

    What a setting of text is given stays text, also where YAML reads a number, a date or a truth in it: the artifact
    0123456789012345, the name 2024. Only ``null``, ``~`` and nothing at all leave a setting empty that may be empty.
    """
    try:
        value = yaml.load(text, Loader=_ClosedLoader)
        as_text = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not readable as YAML: {' '.join(str(error).split())}") from None
    annotation = annotation_at(ExperimentConfig, path) if path in FIELDS else Any
    if not takes(annotation, str, Path) or not isinstance(as_text, str):
        return value
    return None if value is None and takes(annotation, type(None)) else as_text


def with_values(config: ExperimentConfig, values: Mapping[str, Any], source: str = "trial") -> ExperimentConfig:
    """``config`` with some settings replaced by dotted path. Raises ``ConfigError``.

    Of the sections only those that change are validated again, and how all fit together.
    """
    raw = {name: getattr(config, name) for name in type(config).model_fields}
    for name in {path.split(".")[0] for path in values}:
        section = raw.get(name)
        raw[name] = to_dict(section) if isinstance(section, BaseModel) else section
    return parse(override(raw, values, source), source)


def to_dict(config: BaseModel) -> dict[str, Any]:
    """Plain JSON data of a configuration."""
    return config.model_dump(mode="json", by_alias=True)  # as a file writes it: "if", not "only_if"


def resolve_paths(config: ExperimentConfig, root: Path) -> ExperimentConfig:
    """Make every path absolute (workers run in other directories)."""
    return _with_places(config, lambda path: (root / home(path)).resolve())


def recorded(config: ExperimentConfig) -> dict[str, Any]:
    """Plain JSON data of a configuration as it is kept: places in the project, the folder around ``output_dir``, relative to it.

    So it says the same after the project was moved or copied; ``resolve_paths`` with that folder is the way back.
    """
    project = config.output_dir.parent
    inside = project != project.parent  # what lies below / is no project
    return to_dict(
        _with_places(config, lambda p: p.relative_to(project) if inside and p.is_relative_to(project) else p)
    )


def _with_places(config: ExperimentConfig, change: Callable[[Path], Path]) -> ExperimentConfig:
    def place(text: str | None) -> str | None:
        return text if not text or is_uri(text) else str(change(Path(text)))

    data = {"data_dir": place(config.data.data_dir), "table": config.data.table and change(config.data.table)}
    uri = config.tracking.uri
    if uri and uri.startswith(_SQLITE):
        uri = f"{_SQLITE}{change(Path(uri.removeprefix(_SQLITE)))}"
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "tracking": config.tracking.model_copy(update={"uri": uri}),
            "output_dir": change(config.output_dir),
            "storage": place(config.storage),
        }
    )


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _deep_copy(v) for k, v in value.items()}
    return list(value) if isinstance(value, list | tuple) else value


def explain(error: ValidationError, source: str, root: type[BaseModel] = ExperimentConfig) -> Iterator[str]:
    """One line per fault, with ``source`` and dotted path, and the nearest name of an unknown setting of ``root``."""
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            yield f"{source}: {path}: unknown setting{_nearest(root, fault['loc'])}"
        elif fault["type"] == "value_error":
            for line in str(fault["ctx"]["error"]).splitlines():
                yield f"{source}: {path + '.' if path else ''}{line}"
        else:
            yield f"{source}: {path}: {fault['msg']} (found {shown(fault['input'])}{_misread(fault)})"


def _misread(fault: "ErrorDetails") -> str:
    """A hint where text is needed and YAML read something else in a bare word."""
    found, quoted = fault["input"], "'" in str(fault.get("ctx", {}).get("expected", ""))
    if isinstance(found, str | list | dict | tuple) or not (fault["type"] in _TEXT or quoted):
        return ""
    return "; text that YAML reads otherwise needs quotes"


def _nearest(root: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    *sections, name = [str(part) for part in loc]
    model: type[BaseModel] | None = root
    for section in sections:
        field = model.model_fields.get(section) if model else None
        model = section_of(field.annotation) if field else None
    return did_you_mean(name, model.model_fields) if model else ""
