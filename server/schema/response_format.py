"""OpenAI's `response_format`: what the text of an answer must be."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from trimtab.engine.grammar import Grammar
from trimtab.server.schema.base import Wire


class JsonSchema(Wire):
    """A schema under a name. Answers satisfy it whether `strict` is true or not."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    definition: dict[str, Any] = Field(alias="schema", description="the JSON Schema that the answer satisfies")
    strict: bool | None = None


class ResponseFormat(Wire):
    """Free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _a_schema_for_its_type(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            wanted = "is required by" if self.json_schema is None else "is known to"
            message = f"json_schema {wanted} type 'json_schema' alone: " + (
                "give it a name and a schema" if self.json_schema is None else "leave it out, or set the type"
            )
            raise PydanticCustomError("json_schema", "{message}", {"message": message, "param": "json_schema"})
        return self

    def grammar(self) -> Grammar | None:
        """What answers must satisfy, if anything; raises InvalidRequest for a schema that is no JSON."""
        if self.json_schema is not None:
            return Grammar.json_schema(self.json_schema.definition)
        return Grammar.json_object() if self.type == "json_object" else None
