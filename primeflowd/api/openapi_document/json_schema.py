"""JSON Schema of the structs that the API decodes and encodes: the dialect of OpenAPI 3.1.

Made from the types themselves, so that the document cannot tell of a field that is not there.
What a type cannot say is added by whoever asks: `rules`, by struct and field. Pure.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import inspect

JsonSchema: TypeAlias = dict[str, Any]
Rules: TypeAlias = Mapping[tuple[type, str], JsonSchema]
"""What to add to the schema of a field, which `null` is no part of; to that of the struct where
the field is ""."""

_REFERENCE: Final = "#/components/schemas/"
_BOUNDS: Final = {
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minItems",
    "max_length": "maxItems",
}


class Components:
    """The schemas of a document that have names.

    Attributes:
        schemas: by name, in the order of being asked for.
    """

    def __init__(self, rules: Rules) -> None:
        self.schemas: dict[str, JsonSchema] = {}
        self._rules = rules
        self._named: dict[str, type] = {}

    def of(self, kind: Any) -> JsonSchema:
        """The schema of values of this type; a struct's is a reference."""
        return self._schema(inspect.type_info(kind))

    def page_of(self, kind: type) -> JsonSchema:
        """The schema of a list that comes in pages (contract 2.9)."""
        name = f"{name_of(kind)}Page"
        if name not in self.schemas:
            following = {
                "description": "the cursor of the next page, null after the last",
                "anyOf": [{"type": "string"}, {"type": "null"}],
            }
            self.schemas[name] = {
                "type": "object",
                "description": "A page of a list.",
                "required": ["items", "next"],
                "properties": {
                    "items": {"type": "array", "items": self.of(kind)},
                    "next": following,
                },
            }
        return {"$ref": _REFERENCE + name}

    def _schema(self, info: inspect.Type) -> JsonSchema:
        match info:
            case inspect.Metadata(type=inner, extra_json_schema=extra):
                return {**self._schema(inner), **(extra or {})}
            case inspect.StructType():
                return self._struct(info)
            case inspect.UnionType(types=types):
                schemas = [self._schema(each) for each in types]
                return {} if {} in schemas else {"anyOf": schemas}
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                return {"type": "array", "items": self._schema(item), **_bounds(info)}
            case inspect.DictType(value_type=value):
                return {"type": "object", "additionalProperties": self._schema(value)}
            case inspect.LiteralType(values=values):
                return {"type": "string", "enum": list(values)}
            case inspect.RawType() | inspect.AnyType():
                return {}
            case inspect.DateTimeType():
                return {"type": "string", "format": "date-time"}
            case inspect.IntType():
                return {"type": "integer", **_bounds(info)}
            case inspect.FloatType():
                return {"type": "number", **_bounds(info)}
            case inspect.StrType():
                return {"type": "string"}
            case inspect.BoolType():
                return {"type": "boolean"}
            case inspect.NoneType():
                return {"type": "null"}
        raise TypeError(f"no schema for {info}")

    def _struct(self, info: inspect.StructType) -> JsonSchema:
        kind: type[msgspec.Struct] = info.cls
        name = name_of(kind)
        if name not in self.schemas:
            self._named[name] = kind
            self.schemas[name] = {}  # keeps its place before those that it refers to
            self.schemas[name].update(self._object(info, kind))
        elif self._named.get(name) is not kind:
            raise TypeError(f"two types would be called {name}")
        return {"$ref": _REFERENCE + name}

    def _object(self, info: inspect.StructType, kind: type[msgspec.Struct]) -> JsonSchema:
        sparse = kind.__struct_config__.omit_defaults
        description, told = _docstring(kind)
        schema: JsonSchema = {"type": "object", "description": description}
        required = [field.encode_name for field in info.fields if field.required]
        if required:
            schema["required"] = required
        schema["properties"] = {
            field.encode_name: self._field(
                field,
                self._rule(kind, field.encode_name, told),
                drops_null=sparse and field.default is None,
            )
            for field in info.fields
        }
        if info.forbid_unknown_fields:
            schema["additionalProperties"] = False
        return schema | self._rules.get((kind, ""), {})

    def _rule(self, kind: type, field: str, told: Mapping[str, str]) -> JsonSchema:
        said = {"description": told[field]} if field in told else {}
        return said | self._rules.get((kind, field), {})

    def _field(self, field: inspect.Field, rule: JsonSchema, *, drops_null: bool) -> JsonSchema:
        schema = self._schema(field.type)
        values = schema.get("anyOf")
        if values is None:
            return {**schema, **rule}
        *values, null = values
        assert null == {"type": "null"}, "of unions we have only those with null"
        [value] = values
        if drops_null:
            return {**value, **rule}
        told = {"description": rule["description"]} if "description" in rule else {}
        rest = {key: part for key, part in rule.items() if key != "description"}
        return {**schema, **told, "anyOf": [{**value, **rest}, null]}


def name_of(kind: type) -> str:
    """What a struct is called in the document."""
    return kind.__name__.removesuffix("Shape")


def _prose(text: str | None) -> str:
    """A docstring, its lines joined and without the marks of code."""
    return " ".join((text or "").replace("`", "").split())


def _docstring(kind: type) -> tuple[str, dict[str, str]]:
    """What the docstring of a struct says of all of it, and of single fields."""
    text, _, attributes = (kind.__doc__ or "").partition("\n\n    Attributes:")
    found = re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {9,}.*)*)", attributes, re.MULTILINE)
    return _prose(text), {name: _prose(said) for names, said in found for name in names.split(", ")}


def _bounds(info: inspect.Type) -> JsonSchema:
    found = {name: getattr(info, bound, None) for bound, name in _BOUNDS.items()}
    return {name: value for name, value in found.items() if value is not None}
