"""`axolotl config-schema` with the `scalebio:` block in it; loaded for that command alone (see `boot`)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from .block import ScaleBiOArgs


def with_block(host: type[BaseModel]) -> type[BaseModel]:
    """The host's config model, whose JSON schema also describes the block, leaf by leaf."""

    class WithScaleBiO(host):  # type: ignore[misc,valid-type]
        @classmethod
        def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
            block = ScaleBiOArgs.model_json_schema(*args, **kwargs)
            try:
                schema = host.model_json_schema(*args, **kwargs)
            except (TypeError, ValueError, AttributeError):  # as the command does: some hosts' types have no schema
                schema = {"properties": {name: _simple(field) for name, field in host.model_fields.items()}}
            schema["properties"] |= block["properties"]
            schema["$defs"] = schema.get("$defs", {}) | block.get("$defs", {})
            return schema

    WithScaleBiO.__name__ = host.__name__
    return WithScaleBiO


def _simple(field: Any) -> dict[str, str]:
    return {"type": str(field.annotation)} | ({"description": field.description} if field.description else {})
