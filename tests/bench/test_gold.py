"""Gold measures: VADER in this process, and guides of a server."""

import subprocess
import sys
from collections.abc import Iterable

import pytest

from trimtab.bench.errors import BenchError
from trimtab.bench.gold import AT_ONCE, gold_of
from trimtab.clients.calls import Asked
from trimtab.clients.client import TrimtabClient
from trimtab.clients.results import Guide


class Server(TrimtabClient):
    """Has two guides, of which one scores answers: by their length."""

    def __init__(self) -> None:
        super().__init__("http://nowhere")
        self.sent: list[int] = []

    def guides(self) -> list[Guide]:
        told = (("taste", True), ("calm", False))
        return [Guide(raw={}, name=n, role="", scores_answers=s, scores_candidates=False) for n, s in told]

    def score(self, guide: str, pairs: Iterable[Asked], *, request_id: str | None = None) -> list[float]:
        assert guide == "taste"
        each = list(pairs)
        self.sent.append(len(each))
        return [float(len(text)) for _, text in each]


def test_none_is_no_measure() -> None:
    assert gold_of("none", Server()) is None


def test_vader_reads_the_answer_alone() -> None:
    gold = gold_of("vader", Server())
    assert gold is not None
    texts = ["I love it!", "I hate it!", "It is a table.", ""]
    scores = gold.scores([("Is it horrible and sad?", text) for text in texts])
    assert scores == gold.scores([([{"role": "user", "content": "Hi"}], text) for text in texts])
    assert scores[0] > 0.5
    assert scores[1] < -0.5
    assert scores[2:] == [0.0, 0.0]
    assert gold.scores([]) == []
    assert [gold.reads(language) for language in ("en", "de")] == [True, False]


def test_a_guide_is_sent_many_answers_in_parts_and_keeps_their_order() -> None:
    server = Server()
    gold = gold_of("taste", server)
    assert gold is not None
    count = 2 * AT_ONCE + 3
    assert gold.scores([("q", "x" * index) for index in range(count)]) == list(map(float, range(count)))
    assert server.sent == [AT_ONCE, AT_ONCE, 3]
    assert gold.reads("de")


@pytest.mark.parametrize("name", ["tast", "calm", ""])
def test_a_guide_that_is_not_there_or_scores_nothing_is_refused(name: str) -> None:
    with pytest.raises(BenchError, match=rf"{name!r}: take vader, none or a guide .* http://nowhere has taste"):
        gold_of(name, Server())


def test_vader_that_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vaderSentiment", "vaderSentiment.vaderSentiment"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(BenchError, match=r"pip install 'trimtab\[bench\]'"):
        gold_of("vader", Server())


def test_nothing_of_the_extra_is_read_unless_asked_for() -> None:
    code = "import sys, trimtab.bench.gold; sys.exit(any('vader' in name for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
