"""A chat template for models that come without one, so that a conversation can be sent to a pretrained base."""

from pathlib import Path

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
