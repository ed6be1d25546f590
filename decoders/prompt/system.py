"""Text in the system message of a conversation."""

from collections.abc import Sequence

from trimtab.engine.vocabulary import Message

SYSTEM = ("system", "developer")
"""roles of a system message"""


def with_system(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The conversation with `text` at the end of its first system message, or in a new one at the beginning."""
    if messages and messages[0]["role"] in SYSTEM:
        own, *rest = messages
        return (Message(role=own["role"], content=f"{own['content']}\n\n{text}"), *rest)
    return (Message(role="system", content=text), *messages)
