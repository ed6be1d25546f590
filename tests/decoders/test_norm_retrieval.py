"""Which norms a query gets: on rules made by hand, through every filter, whatever it says, by words and vectors."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from trimtab.decoders.library import Asked, Library, Norm, NormPatch, matching
from trimtab.decoders.library.errors import LibraryError
from trimtab.decoders.library.words import Frequencies, searchable

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)

RULES = {
    "refund": "Explain the refund policy: customers may return goods within thirty days.",
    "delivery": "Give the delivery time as a range of working days, never as a promise.",
    "discount": "Do not promise discounts that are not on the price list.",
    "dosage": "Never state a dosage of medicine; send the patient to a pharmacist or doctor.",
    "emergency": "If somebody describes chest pain or trouble breathing, tell them to call an ambulance at once.",
    "diagnosis": "Do not give a diagnosis; describe possible causes of symptoms in general terms.",
    "allergy": "Mention common allergens whenever a recipe contains nuts, milk, eggs or shellfish.",
    "passwords": "Never ask for passwords or repeat one that a user has typed.",
    "phishing": "Warn about suspicious links in e-mails and explain how phishing works.",
    "privacy": "Keep addresses and phone numbers of private persons to yourself.",
    "minors": "Answer children in simple words and send them to a trusted adult for worries.",
    "homework": "Help pupils with homework by hints and questions before the solution.",
    "plagiarism": "Do not write an essay that a student means to hand in as their own.",
    "citations": "Name the source of every figure and quotation.",
    "elections": "Treat all parties in an election alike and give no advice on whom to vote for.",
    "religion": "Speak of religious holidays with respect, without judging what is believed.",
    "alcohol": "Do not encourage drinking alcohol; suggest drinks without it as well.",
    "driving": "Remind people that driving after drinking is dangerous and forbidden.",
    "visas": "Point travellers to the embassy for visa requirements.",
    "currency": "State prices in the currency of the customer's country.",
    "weapons": "Refuse instructions for building weapons or explosives.",
    "chemicals": "Warn that bleach must not be mixed with ammonia or other cleaning chemicals.",
    "invest": "Say that past returns of shares are no guarantee, and give no advice on single stocks.",
    "tax": "Explain tax terms in general and send people to an adviser for their own return.",
    "units": "Use metric units and add imperial ones in brackets.",
    "kuendigung": "Erkläre bei einer Kündigung die Frist und verweise auf den Vertrag.",
    "rueckgabe": "Nenne bei Rückgaben die Frist von vierzehn Tagen und die Adresse für das Paket.",
    "remboursement": "Expliquez poliment les délais de remboursement et demandez le numéro de commande.",
    "medicos": "Para preguntas sobre medicamentos, aconseje hablar con un médico o farmacéutico.",
    "tuikuan": "客户询问退款时请说明七天内可以退货。",
    "mitsumori": "見積もりを依頼されたら、納期と送料も伝えてください。",
    "dostavka": "Сообщайте срок доставки в рабочих днях и номер для отслеживания посылки.",
}
QUESTIONS = {
    "How many days do I have to return something and get a refund?": "refund",
    "When will my delivery arrive?": "delivery",
    "what DOSAGE of ibuprofen medicine can my son take??": "dosage",
    "My father has chest pain, what should I do": "emergency",
    "I forgot my password; should I send you old passwords?": "passwords",
    "Is this e-mail with a strange link phishing?": "phishing",
    "Write my history essay, I am a student and hand it in tomorrow": "plagiarism",
    "Whom should I vote for in the election?": "elections",
    "Can I mix bleach and ammonia for cleaning?": "chemicals",
    "Which stocks or shares should I buy?": "invest",
    "Wie lange ist die Frist bei einer KUENDIGUNG oder Kundigung?": "kuendigung",
    "Quels sont les delais de remboursement de ma commande ?": "remboursement",
    "¿Puedo tomar estos medicamentos sin hablar con el medico?": "medicos",
    "我想退款。可以退货吗": "tuikuan",
    "見積もりと納期を教えて": "mitsumori",
    "Какой срок доставки моей посылки?": "dostavka",
}


@pytest.fixture
def library() -> Iterator[Library]:
    made = Library()
    yield made
    made.close()


def ids(library: Library, query: str = "rule", **asked: Any) -> list[str]:
    return [each.norm.id for each in library.norms.retrieve(Asked(query, **asked)).found]


def test_questions_find_their_rule_among_the_first_three(library: Library) -> None:
    library.norms.load(Norm(id=id_, text=text) for id_, text in RULES.items())
    places = {question: ids(library, question, k=3) for question in QUESTIONS}
    missed = {question: found for question, found in places.items() if QUESTIONS[question] not in found}
    assert not missed, "recall at 3 is 1"
    first = [found[0] == QUESTIONS[question] for question, found in places.items()]
    assert sum(first) >= 14


def test_scores_fall_and_k_bounds_what_is_found(library: Library) -> None:
    library.norms.load(Norm(id=f"n{i}", text="rule " * (i + 1) + "and " * (10 - i)) for i in range(10))
    library.norms.load(Norm(id=f"m{i}", text="something else") for i in range(20))
    found = library.norms.retrieve(Asked("rule", k=100)).found
    assert len(found) == 10
    scores = [each.score for each in found if each.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0
    assert found[0].norm.id == "n9", "the term that is used most, in texts of equal length"
    assert ids(library, k=3) == [each.norm.id for each in found[:3]]
    assert ids(library, k=0) == []


@pytest.mark.parametrize(
    ("norm", "asked", "held"),
    [
        ({}, {}, True),
        ({}, {"tenant": "t", "topic": "x", "locale": "de"}, True),
        ({"tenant": "t"}, {"tenant": "t"}, True),
        ({"tenant": "t"}, {"tenant": "T"}, False),
        ({"tenant": "t"}, {"tenant": "tt"}, False),
        ({"tenant": "t"}, {}, False),
        ({"topic": "x"}, {"topic": "x"}, True),
        ({"topic": "x"}, {"topic": "y"}, False),
        ({"topic": "x"}, {}, False),
        ({"locale": "de"}, {"locale": "de"}, True),
        ({"locale": "de"}, {"locale": "de-AT"}, True),
        ({"locale": "DE"}, {"locale": "de_at"}, True),
        ({"locale": "de-Latn"}, {"locale": "de-latn-AT"}, True),
        ({"locale": "de-AT"}, {"locale": "de"}, False),
        ({"locale": "de"}, {"locale": "den"}, False),
        ({"locale": "de"}, {}, False),
        ({"tags": ("a", "b")}, {"tags": ("b", "c")}, True),
        ({"tags": ("a", "b")}, {"tags": ("c",)}, False),
        ({}, {"tags": ("a",)}, False),
        ({"tags": ("a",)}, {}, True),
        ({"valid_from": NOON}, {"now": NOON}, True),
        ({"valid_from": NOON}, {"now": NOON - timedelta(microseconds=1)}, False),
        ({"valid_until": NOON}, {"now": NOON - timedelta(microseconds=1)}, True),
        ({"valid_until": NOON}, {"now": NOON}, False),
        ({"valid_from": NOON, "valid_until": NOON + timedelta(hours=1)}, {"now": NOON + timedelta(minutes=59)}, True),
        ({"valid_from": datetime.now(UTC) + timedelta(days=1)}, {}, False),
        ({"valid_until": datetime.now(UTC) + timedelta(days=1)}, {}, True),
    ],
)
@pytest.mark.parametrize("few", [2000, 0])
def test_scopes_tags_and_dates_hold(
    library: Library, monkeypatch: pytest.MonkeyPatch, few: int, norm: dict[str, Any], asked: dict[str, Any], held: bool
) -> None:
    """By words, by vectors and by name, with few norms listed first and with many checked afterwards."""
    monkeypatch.setattr(matching, "FEW", few)
    library.norms.create(Norm(id="a", text="a rule", **norm))
    library.norms.embed_missing("m", lambda texts: np.ones((len(texts), 1), np.float32))
    expected = ["a"] if held else []
    assert ids(library, **asked) == expected
    assert ids(library, "no such word", embedding=np.ones(1, np.float32), model="m", share=1.0, **asked) == expected
    told = library.norms.retrieve(Asked("", ids=("a",), **asked))
    in_scope = held or "tags" in asked  # tags do not matter to norms that are named
    assert ([each.norm.id for each in told.found], told.missing) == ((["a"], ()) if in_scope else ([], ("a",)))


def test_named_norms_come_first_and_once(library: Library) -> None:
    library.norms.load(Norm(id=f"n{i}", text="a rule") for i in range(5))
    library.norms.create(Norm(id="other", text="something else"))
    library.norms.create(Norm(id="theirs", text="a rule", tenant="t"))
    told = library.norms.retrieve(Asked("rule", k=3, ids=("other", "gone", "n3", "theirs", "n3")))
    assert [each.norm.id for each in told.found] == ["other", "n3", "n0", "n1", "n2"]
    assert [each.score is None for each in told.found] == [True, True, False, False, False]
    assert told.missing == ("gone", "theirs")
    assert ids(library, "", ids=("other",)) == ["other"]
    assert ids(library, k=0, ids=("n1",)) == ["n1"]


@pytest.mark.parametrize(
    "query",
    [
        "",
        " ",
        '"',
        '""""',
        "'; DROP TABLE norms; --",
        "rule*",
        "NEAR(rule x, 2)",
        "text:rule",
        "rule AND",
        "NOT rule",
        "^rule",
        "-rule",
        "{text}:rule",
        "(((((",
        "rule\0rule",
        "\0",
        "\ud800 rule \udfff",
        "👩‍👩‍👧 rule 🏴",
        "\u202erule",
        "\uff52\uff55\uff4c\uff45",
        "rule" * 5000,
        "rule-" * 50_000,
        "rule " * 200_000,
        " ".join(f"word{i}" for i in range(10_000)) + " rule",
        "規" * 100_000 + " rule",
        "\u0301" * 10_000 + " rule",
    ],
)
def test_no_query_is_syntax_or_too_long(library: Library, query: str) -> None:
    library.norms.load(Norm(id=id_, text=text) for id_, text in (("a", "The rule, and a word."), ("b", "Nothing.")))
    words = searchable(query.replace("\0", " ")).lower()
    expected = ["a"] if "rule" in words and "rulerule" not in words else []
    assert ids(library, query) == expected


def test_an_empty_store_gives_nothing(library: Library) -> None:
    told = library.norms.retrieve(Asked("rule", ids=("a",), embedding=np.ones(3, np.float32), model="m"))
    assert told == ((), ("a",))


def test_what_changes_is_in_force_at_once(library: Library) -> None:
    norms = library.norms
    assert ids(library, "first") == []
    norms.create(Norm(id="a", text="first"))
    assert ids(library, "first") == ["a"]
    norms.patch("a", NormPatch(text="second"))
    assert (ids(library, "first"), ids(library, "second")) == ([], ["a"])
    norms.replace(Norm(id="a", text="third", topic="x"))
    assert (ids(library, "third"), ids(library, "third", topic="x")) == ([], ["a"])
    norms.delete("a")
    assert ids(library, "third", topic="x") == []


def test_words_that_many_norms_share_give_way_to_rare_ones(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large store; where few norms pass the filters, a common word finds them all the same."""
    for name, value in (("FEW", 10), ("POSTINGS", 30), ("ALONE", 100), ("POSTINGS_FEW", 30)):
        monkeypatch.setattr(matching, name, value)
    library.norms.load(Norm(id=f"n{i:03}", text="the common rule " + "often " * (i % 3 == 0)) for i in range(200))
    library.norms.load([Norm(id="rare", text="the common rare rule"), Norm(id="theirs", text="the common", tenant="t")])
    assert ids(library, "the common rare rule often") == ["rare"], "the others would cost more than they tell"
    assert len(ids(library, "often", k=100)) == 67, "the rarest word is looked up, unless it is too common"
    assert ids(library, "the common") == []
    library.norms.load(Norm(id=f"t{i}", text="the common", tags=("few",)) for i in range(3))
    assert ids(library, "the common", tags=("few",)) == ["t0", "t1", "t2"]


def vectors_of(size: int, generator: random.Random) -> np.ndarray:
    made = np.array([[generator.gauss(0, 1) for _ in range(8)] for _ in range(size)], np.float32)
    return np.float32(made / np.linalg.norm(made, axis=1, keepdims=True))


def fill(library: Library, made: dict[str, Any]) -> None:
    """Vectors of norms by their texts."""
    library.norms.embed_missing("m", lambda texts: np.stack([np.asarray(made[text], np.float32) for text in texts]))


def test_words_and_embeddings_are_fused_by_rank(library: Library) -> None:
    """The words' order is a, b; the embedding's is c, b, a: scores are (1 - share)/(60 + r) + share/(60 + r')."""
    texts = {"a": "rule rule", "b": "a rule, and more words", "c": "else"}
    library.norms.load([Norm(id=id_, text=text) for id_, text in texts.items()])
    library.norms.load(Norm(id=f"z{i}", text="filler", tenant="nobody") for i in range(20))
    fill(library, {"filler": [0, 0], texts["a"]: [0, 1], texts["b"]: [0.5, 0.5], texts["c"]: [1, 0]})
    query = np.array([1, 0], np.float32)

    def scores(share: float) -> dict[str, float | None]:
        asked = Asked("rule", embedding=query, model="m", share=share)
        return {each.norm.id: each.score for each in library.norms.retrieve(asked).found}

    for share in (0.25, 0.5, 0.75):
        rest = 1 - share
        assert scores(share) == pytest.approx(
            {"a": rest / 61 + share / 63, "b": rest / 62 + share / 62, "c": share / 61}, rel=1e-12
        )
    assert list(scores(1.0)) == ["c", "b", "a"]
    assert list(scores(0.25)) == ["a", "b", "c"]
    assert scores(0.0) == {each.norm.id: each.score for each in library.norms.retrieve(Asked("rule")).found}


def test_embeddings_alone_answer_where_no_word_is_known(library: Library) -> None:
    library.norms.load([Norm(id="a", text="one"), Norm(id="b", text="two"), Norm(id="c", text="without a vector yet")])
    fill(library, {"one": [1, 0], "two": [0, 1], "without a vector yet": [-1, -1]})
    library.norms.patch("c", NormPatch(text="changed, so its vector is gone"))
    assert ids(library, "", embedding=np.array([0.1, 1], np.float32), model="m") == ["b", "a"]
    with pytest.raises(LibraryError, match="embed the norms anew"):
        ids(library, "", embedding=np.ones(3, np.float32), model="m")
    with pytest.raises(LibraryError, match="name that in `model`"):
        ids(library, "", embedding=np.ones(2, np.float32))


def test_the_nearest_are_found_exactly_among_many(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through blocks, changes and rebuilding, with wide and narrow filters; against the plain products."""
    monkeypatch.setattr("trimtab.decoders.library.vectors.BLOCK", 16)
    monkeypatch.setattr(matching, "FEW", 30)
    generator = random.Random(0)
    texts = [f"text {i}" for i in range(900)]
    made = dict(zip(texts, np.float16(vectors_of(len(texts), generator)), strict=True))
    there: dict[str, Norm] = {}

    def put(i: int, text: str) -> None:
        there[f"n{i}"] = Norm(
            id=f"n{i}", text=text, tags=(f"tag{i % 3}", f"rare{i % 40}"), topic="x" if i % 7 else None
        )

    for i in range(600):
        put(i, texts[i])
    library.norms.load(there.values())
    fill(library, made)
    for turn in range(6):
        for query in vectors_of(4, generator):
            for asked in (
                {},
                {"topic": "x"},
                {"tags": ("tag1",)},
                {"tags": ("rare7",)},
                {"tags": ("rare7",), "topic": "x"},
            ):
                wanted = set(asked.get("tags", ()))
                passing = [
                    norm
                    for norm in there.values()
                    if norm.topic in (None, asked.get("topic")) and (not wanted or wanted & set(norm.tags))
                ]
                passing.sort(key=lambda norm: -float(np.float32(made[norm.text]) @ query))
                found = ids(library, "", k=5, embedding=query, model="m", share=1.0, **asked)
                assert found == [norm.id for norm in passing[:5]], (turn, asked)
        for i in generator.sample(range(600), 80):
            if generator.random() < 0.3 and f"n{i}" in there:
                library.norms.delete(f"n{i}")
                del there[f"n{i}"]
            else:
                put(i, generator.choice(texts))
                library.norms.load([there[f"n{i}"]])
        fill(library, made)


def test_vectors_of_texts_that_change_meanwhile_are_not_kept(library: Library) -> None:
    library.norms.load([Norm(id="a", text="old"), Norm(id="b", text="same")])

    def embed(texts: Any) -> np.ndarray:
        library.norms.patch("a", NormPatch(text="new"))
        return np.ones((len(texts), 1), np.float32)

    assert library.norms.embed_missing("m", embed) == 1
    assert ids(library, "", embedding=np.ones(1, np.float32), model="m") == ["b"]
    for wrong in (np.ones((1, 2, 1)), np.ones((2, 1)), np.array([[np.nan]])):
        with pytest.raises(LibraryError, match="embedding model"):
            library.norms.embed_missing("m", lambda texts, wrong=wrong: wrong)
    assert library.norms.embed_missing("m", lambda texts: np.ones((len(texts), 1), np.float32)) == 1


def by(library: Library, model: str, *query: float) -> str:
    """Ids of norms by their vectors of one model alone, the nearest first."""
    return "".join(ids(library, "", embedding=np.array(query, np.float32), model=model, share=1.0))


def seen_by(library: Library, model: str, **made: list[float]) -> int:
    """Let a model embed what lacks its vectors, by text."""
    return library.norms.embed_missing(model, lambda texts: np.array([made[text] for text in texts], np.float32))


def test_two_models_in_turn_keep_their_own_vectors(library: Library) -> None:
    """One of the same width that sees everything the other way around, and one of another width."""
    library.norms.load([Norm(id="a", text="one"), Norm(id="b", text="two")])
    assert seen_by(library, "m", one=[1, 0], two=[0, 1]) == 2
    assert seen_by(library, "turned", one=[0, 1], two=[1, 0]) == 2
    for _ in range(2):
        assert (by(library, "m", 1, 0), by(library, "turned", 1, 0)) == ("ab", "ba")
    assert (seen_by(library, "m"), seen_by(library, "turned")) == (0, 0), "nothing is made anew"
    library.norms.patch("a", NormPatch(text="three"))
    assert (by(library, "m", 1, 0), by(library, "turned", 1, 0)) == ("b", "b"), "dropped for both"
    assert seen_by(library, "m", three=[-1, 0]) == 1
    assert (by(library, "m", 1, 0), by(library, "turned", 1, 0)) == ("ba", "b")
    assert seen_by(library, "turned", three=[1, 0]) == 1
    assert seen_by(library, "wide", three=[1, 0, 0], two=[0, 0, 1]) == 2
    assert (by(library, "wide", 0, 0, 1), by(library, "turned", 1, 0)) == ("ba", "ab")
    library.norms.delete("b")
    assert (by(library, "wide", 0, 0, 1), by(library, "turned", 1, 0)) == ("a", "a")


def test_a_norm_keeps_the_vectors_of_two_models(library: Library) -> None:
    """Those that embedded it last; a copy in memory follows what is dropped."""
    library.norms.load([Norm(id="a", text="one"), Norm(id="b", text="two")])
    for model in ("m", "n"):
        assert seen_by(library, model, one=[1, 0], two=[0, 1]) == 2
    assert (by(library, "m", 1, 0), by(library, "n", 1, 0)) == ("ab", "ab")
    assert library.norms.embed_missing("o", lambda texts: np.array([[1, 0]], np.float32), most=1) == 1
    assert (by(library, "m", 1, 0), by(library, "n", 1, 0), by(library, "o", 1, 0)) == ("b", "ab", "a")
    for number in range(20):
        seen_by(library, f"m{number}", one=[1, 0], two=[0, 1])
    with library._database.read() as connection:
        (kept,) = connection.execute("SELECT count(vector) FROM vectors").fetchone()
    assert kept == 4
    assert (by(library, "m19", 1, 0), by(library, "m18", 1, 0), by(library, "m17", 1, 0)) == ("ab", "ab", "")
    assert list(library.norms._matrices._held) == ["m18", "m17"], "no more are held in memory"
    assert seen_by(library, "m17", one=[1, 0], two=[0, 1]) == 2, "they are made again"


def test_numbers_of_texts_are_kept_while_they_are_about_right(library: Library) -> None:
    """A term in 100 texts is counted anew after the eleventh change, one in no text after the first."""
    library.norms.load(Norm(id=f"n{i:03}", text="common") for i in range(100))
    frequencies = Frequencies()

    def counted() -> dict[str, int]:
        with library._database.read() as connection:
            frequencies.rarest(connection, "common new", postings=1000, alone=None)
        return {term: count for term, (count, _) in frequencies._counted.items()}

    assert counted() == {"common": 100, "new": 0}
    library.norms.load(Norm(id=f"m{i}", text="common new") for i in range(10))
    assert counted() == {"common": 100, "new": 10}
    library.norms.create(Norm(id="last", text="common"))
    assert counted() == {"common": 111, "new": 10}
