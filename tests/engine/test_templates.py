from pathlib import Path

import pytest
from tiny import tiny_folder
from transformers import AutoTokenizer

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.errors import InvalidRequest, ModelLoadError
from trimtab.engine.templates import PLAIN, read_template
from trimtab.engine.vocabulary import Message

TALK = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="Why?"),
    Message(role="assistant", content="So."),
    Message(role="user", content="And?"),
]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model without a chat template."""
    folder = tiny_folder(tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    return folder


def prompt(model: Path, chat_template: str | None) -> str:
    with LLM(str(model), settings=EngineSettings(chat_template=chat_template, guides={}, pool_tokens=512)) as llm:
        (result,) = llm.chat([TALK], SamplingParams(max_tokens=1), progress=False)
        assert result.usage.prompt_tokens > 1
        return llm.vocabulary.decode(llm.vocabulary.chat(TALK), skip_special_tokens=False)


def test_plain_lets_a_base_without_a_template_take_a_conversation(bare: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"engine\.chat_template"):
        prompt(bare, None)
    assert prompt(bare, PLAIN) == "Be brief.\n\nQuestion: Why?\n\nAnswer: So.\n\nQuestion: And?\n\nAnswer:"


def test_plain_begins_with_the_token_that_pretrained_bases_expect(bare: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.bos_token = "<eos>"
    tokenizer.save_pretrained(bare)
    assert prompt(bare, PLAIN).startswith("<eos>Be brief.")


def test_a_file_replaces_the_models_own_template(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert prompt(tiny_folder(tmp_path / "own"), str(file)) == "[Be brief.][Why?][So.][And?]"


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nowhere\.jinja.*'plain'"):
        read_template(str(tmp_path / "nowhere.jinja"))
