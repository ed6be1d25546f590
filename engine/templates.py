"""A chat template for models that come without one, so that a conversation can be sent to a pretrained base."""

from pathlib import Path

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from trimtab.engine.errors import ModelLoadError

PLAIN = "plain"
QUESTION_AND_ANSWER = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}Question: {{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}Answer: {{ message.content }}\n\n"
    "{% else %}{{ message.content }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
"""what `plain` stands for"""


def read_template(setting: str) -> str:
    """The Jinja source behind the setting `chat_template`: `plain`, or a file; ModelLoadError if it cannot be read."""
    if setting == PLAIN:
        return QUESTION_AND_ANSWER
    try:
        return Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"chat template {setting!r}: {error}; name a Jinja file, or {PLAIN!r}") from error


def reads_tools(template: str) -> bool:
    """Whether a chat template tells the model of the functions that it may call."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _Generation], autoescape=False)
    try:
        return "tools" in find_undeclared_variables(environment.parse(template))
    except TemplateError:
        return False


class _Generation(Extension):
    """The block in which transformers' templates put what an assistant said."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
