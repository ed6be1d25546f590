"""Functions that a model may call, as OpenAI's chat requests name them."""

from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import from_json

from trimtab.server.schema.base import Wire

FunctionName = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")


class Function(Wire):
    """What a function is called, is for and takes: `parameters` is a JSON Schema of an object."""

    name: str = FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Wire):
    """One function that the model may call."""

    type: Literal["function"]
    function: Function

    def described(self) -> dict[str, Any]:
        """As chat templates take it; they know nothing of `strict`."""
        function: dict[str, Any] = {"name": self.function.name, "description": self.function.description or ""}
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class FunctionChoice(Wire):
    """The name of the one function to call."""

    name: str


class ToolChoice(Wire):
    """That the model has to call one certain function."""

    type: Literal["function"]
    function: FunctionChoice


class FunctionCall(Wire):
    """A function and its arguments, as the JSON text of an object."""

    name: str = FunctionName
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _an_object(cls, arguments: str) -> str:
        try:
            if isinstance(from_json(arguments or "{}", allow_inf_nan=False), dict):
                return arguments
        except ValueError:
            pass
        raise ValueError("the arguments of a call are the JSON text of an object")


class ToolCall(Wire):
    """A call that an assistant has made earlier in the conversation."""

    id: str
    type: Literal["function"]
    function: FunctionCall

    def to_message(self) -> dict[str, Any]:
        """As chat templates take it: arguments are an object."""
        arguments = from_json(self.function.arguments or "{}", allow_inf_nan=False)
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}
