"""YAML files with a schema, and errors that name the file, the line and what is allowed."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args, get_origin

import pydantic
import pydantic_core
import yaml

from quadrate.config.refused import reason
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails


class Schema(pydantic.BaseModel):
    """The base of every file's schema: frozen, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    secret_in: ClassVar[frozenset[str]] = frozenset()
    """Keys of the file under which names may be secrets. Errors go to logs and to readiness: they repeat none of what stands there."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse_switches(cls, value: Any) -> Any:
        """Refuse yes or true for a number: the library would take it for 1."""
        for name, field in cls.model_fields.items() if isinstance(value, dict) else ():
            given = value.get(name)
            switch = next((one for one in (given if isinstance(given, list) else [given]) if isinstance(one, bool)), None)
            if switch is not None and _is_of_numbers(field.annotation):
                raise misplaced(f"must be a number, not {str(switch).lower()}", name)
        return value


def _is_of_numbers(annotation: Any) -> bool:
    return annotation in (int, float) or any(_is_of_numbers(part) for part in get_args(annotation))


def misplaced(message: str, *place: str | int) -> ValueError:
    """Return the error of a schema's own check for a place inside it, whose line is told, rather than for the whole."""
    error = pydantic_core.PydanticCustomError("value_error", "{reason}", {"reason": message})
    line = pydantic_core.InitErrorDetails(type=error, loc=place, input=None)
    return pydantic.ValidationError.from_exception_data("", [line], hide_input=True)


_SLIP = 0.85
"""How much alike a name and a key of the schema are that it was meant to be, from 0 to 1."""
_SHAPES = {
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of names to values",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "invalid_key": "keys must be text; put a number between quotes",
}
"""What something has to be that is of another shape, by the library's name of the fault."""
_QUOTED = re.compile(r"'[^']{4,}'")
SchemaT = TypeVar("SchemaT", bound=Schema)


class _TwiceError(yaml.MarkedYAMLError):
    """A key that stands twice in a mapping."""


_PARSER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
"""A file of thousands of keys is read while requests go on: libyaml's parser takes a thirtieth of the time."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that is written twice: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below
            if key.value in seen:
                raise _TwiceError(problem=f"key {key.value!r} is written twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as exc:  # a date or a number that looks like one and is none
            raise yaml.MarkedYAMLError(problem=f"this cannot be read: {exc}", problem_mark=node.start_mark) from exc


def load(path: Path, schema: type[SchemaT], *, completed: Callable[[SchemaT], SchemaT] = lambda file: file) -> SchemaT:
    """Read `path` and return it as `schema`, `completed` by what stands elsewhere; it may say what is `misplaced`.

    Raises:
        ConfigError: The file is missing, is no YAML, or breaks the schema. The text has one line for each problem,
            `FILE:LINE: KEY: what is wrong; what is allowed`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    return parse(text, schema, name=str(path), completed=completed)


def parse(text: str, schema: type[SchemaT], *, name: str, completed: Callable[[SchemaT], SchemaT] = lambda file: file) -> SchemaT:
    """As `load`, for text that is already at hand; `name` stands for the file in errors."""
    try:
        root = yaml.compose(text, Loader=_PARSER)
        data = None if root is None else _Loader("").construct_document(root)
    except (yaml.YAMLError, RecursionError) as exc:
        raise ConfigError(_yaml_problem(exc, name, schema)) from (None if schema.secret_in else exc)
    try:
        return completed(schema.model_validate({} if data is None else data))
    except pydantic.ValidationError as exc:
        problems = [f"{name}:{_line(root, error['loc'])}: {_describe(error, schema)}" for error in exc.errors()]
        raise ConfigError("\n".join(problems)) from exc


def _yaml_problem(exc: Exception, name: str, schema: type[Schema]) -> str:
    mark = getattr(exc, "problem_mark", None)
    line = mark.line + 1 if mark else 1
    problem = getattr(exc, "problem", None) or "is not YAML"
    if schema.secret_in:
        problem = "a key is written twice" if isinstance(exc, _TwiceError) else _QUOTED.sub("'…'", problem)
    return f"{name}:{line}: {problem}"


def _line(node: yaml.Node | None, loc: Sequence[str | int]) -> int:
    """Return the 1-based line of the deepest node on the way `loc` that exists."""
    line = node.start_mark.line + 1 if node else 1
    for step in loc:
        found = _step(node, step)
        if found is None:
            continue  # a step of the schema (a union's branch), not of the file
        mark, node = found
        line = mark.line + 1
    return line


def _step(node: yaml.Node | None, step: str | int) -> tuple[yaml.Mark, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark, value) for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark, node.value[step]
    return None


def _describe(error: ErrorDetails, schema: type[Schema]) -> str:
    if error["type"] == "string_type" and error["loc"][-1:] == ("[key]",):
        return f"{_path(error['loc'][:-1], schema)}: {_SHAPES['invalid_key']}"
    where = _path(error["loc"], schema)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_allowed(str(error['loc'][-1]), _keys(schema, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{where}: is missing"
    if error["type"] in _SHAPES:
        said = _SHAPES[error["type"]] + (_allowed("", _keys(schema, error["loc"])) if error["type"] == "model_type" else "")
        return f"{where}: {said}" if where else said
    if error["type"] == "string_type" and isinstance(error["input"], bool):
        return f"{where}: must be text, and YAML reads on, off, yes, no, true and false as something else; put the word between quotes"
    said = reason(error, is_secret=any(step in schema.secret_in for step in error["loc"]))
    return f"{where}: {said}" if where else said


def _path(loc: Sequence[str | int], schema: type[Schema]) -> str:
    text, is_secret = "", False
    for place, name in enumerate(loc):
        is_index = isinstance(name, int) and not _has_names(schema, loc[:place])
        step = "…" if is_secret and not is_index and not _is_of_schema(str(name), schema, loc[:place]) else name
        is_secret = is_secret or name in schema.secret_in
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _has_names(schema: type[Schema], loc: Sequence[str | int]) -> bool:
    """Whether what stands at a place of the file is a mapping whose keys are anybody's. A number among them is no place in a list."""
    field = schema.model_fields.get(str(loc[0])) if len(loc) == 1 else None
    return field is not None and get_origin(field.annotation) is dict


def _is_of_schema(name: str, schema: type[Schema], loc: Sequence[str | int]) -> bool:
    """Whether a name is a key of the schema at this place, or a slip of one."""
    return bool(difflib.get_close_matches(name, _keys(schema, loc), n=1, cutoff=_SLIP))


def _allowed(key: str, keys: Sequence[str]) -> str:
    if not keys:
        return ""
    close = difflib.get_close_matches(key, keys, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{hint}; allowed: {', '.join(keys)}"


def _keys(schema: type[Schema], loc: Sequence[str | int]) -> Sequence[str]:
    """Return the keys allowed at `loc`, or nothing where the schema branches."""
    found: Any = schema
    for step in loc:
        if isinstance(found, type) and issubclass(found, Schema) and step in found.model_fields:
            found = _inner(found.model_fields[str(step)].annotation)
    return tuple(found.model_fields) if isinstance(found, type) and issubclass(found, Schema) else ()


def _inner(annotation: Any) -> Any:
    """Return the one schema inside an annotation such as `tuple[Route, ...]`, `dict[str, Card]` or `Upstream | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        return annotation
    inside = [_inner(argument) for argument in getattr(annotation, "__args__", ())]
    schemas = [found for found in inside if isinstance(found, type) and issubclass(found, Schema)]
    return schemas[0] if len(schemas) == 1 else annotation
