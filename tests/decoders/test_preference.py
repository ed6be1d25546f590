"""Preferences: what they fill in equals what a request could have named itself, and what is refused."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from collector import Collector
from tiny import tiny_folder

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.decoders.attributes import Attribute, default_attributes
from trimtab.decoders.floor import Floor
from trimtab.decoders.library import Library
from trimtab.decoders.preference import Personal
from trimtab.decoders.registry import strategies
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.config import LanguageConfig, PreferenceConfig, default_guides
from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.results import Result
from trimtab.engine.rewards.program import Keywords, Length
from trimtab.engine.vocabulary import Message
from trimtab.requests import GenerationRequest

ATTRIBUTES = {
    "size": Attribute(low="small", high="large", reward=Expression(guide="length", weight=0.5), arm="first"),
    "letters": Attribute(low="bare", high="lettered", reward=Expression.of("letters"), arm="second"),
    "tone": Attribute(low="dull", high="bright"),
}
PERSONAL = Personal(ATTRIBUTES)
WEIGHTS = {"size": 0.75, "letters": -0.5}
LETTERS = Keywords(words=("a", "e", "i", "o", "u"), forbidden=("x", "y"))
REWARD = {"sum": [{"guide": "length", "weight": 0.375}, {"guide": "letters", "weight": -0.5}]}
ASKED = (Message(role="user", content="Why?"),)
SAMPLED = SamplingParams(seed=3, max_tokens=8, temperature=1.0)
FILLED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"strategy": "best_of_n", "n": 4}, {"strategy": "best_of_n", "n": 4, "reward": REWARD}),
    ({"strategy": "qalign", "steps": 3}, {"strategy": "qalign", "steps": 3, "reward": REWARD}),
    (
        {"strategy": "rps", "directions": 3},
        {
            "strategy": "rps",
            "directions": 3,
            "preference": WEIGHTS,
            "rewards": {"size": {"guide": "length", "weight": 0.5}},
        },
    ),
    ({"strategy": "genarm"}, {"strategy": "genarm", "arms": {"first": 0.75, "second": -0.5}}),
    (
        {"steer": [{"method": "genarm", "alpha": 2.0}]},
        {"steer": [{"method": "genarm", "alpha": 2.0, "arms": {"first": 0.75, "second": -0.5}}]},
    ),
    ({"strategy": "persona"}, {"strategy": "persona", "attributes": WEIGHTS}),
    (
        {"strategy": "best_of_n", "prompt": [{"method": "persona"}], "steer": [{"method": "genarm"}]},
        {
            "strategy": "best_of_n",
            "reward": REWARD,
            "prompt": [{"method": "persona", "attributes": WEIGHTS}],
            "steer": [{"method": "genarm", "arms": {"first": 0.75, "second": -0.5}}],
        },
    ),
    (
        {"strategy": "best_of_n", "reward": "letters", "prompt": [{"method": "persona"}]},
        {"strategy": "best_of_n", "reward": "letters", "prompt": [{"method": "persona", "attributes": WEIGHTS}]},
    ),
]
"""what a request leaves out, and the same in full"""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    base, *arms = (tiny_folder(tmp_path_factory.mktemp(f"tiny{seed}"), seed=seed) for seed in range(3))
    head = tmp_path_factory.mktemp("head") / "preference_head.safetensors"
    torch.manual_seed(0)
    PreferenceHead(("length", "letters"), torch.randn(2, 48), torch.zeros(2)).save(head)
    guides = {
        "length": Length(direction="longer", unit="characters"),
        "letters": LETTERS,
        "third": Length(direction="shorter", unit="characters"),
        "first": LanguageConfig(model=str(arms[0])),
        "second": LanguageConfig(model=str(arms[1])),
        "teller": PreferenceConfig(model=str(head)),
    }
    settings = EngineSettings(model=str(base), dtype="float32", pool_tokens=8192, context_length=256, guides=guides)
    library = Library()
    with LLM(settings=settings, attributes=ATTRIBUTES, library=library) as llm:
        yield llm
    library.close()


def run(llm: LLM, decoding: dict[str, Any], text: str = "Why?", **options: Any) -> Result:
    request = GenerationRequest(
        messages=(Message(role="user", content=text),), **{"sampling": SAMPLED, **options}, decoding=decoding
    )
    collector = Collector()
    llm.submit(llm.prepare(request), object(), collector)
    assert collector.done.wait(60)
    result = collector.events[-1]
    assert isinstance(result, Result), result
    return result


def told(result: Result) -> list[Any]:
    """Everything about the answers, the search's report included."""
    report = {key: value for key, value in result.report.items() if key != "preference"}
    choices = [(each.text, each.token_ids, each.finish_reason) for each in result.choices]
    return [choices, [(each.text, each.reward, each.rewards) for each in result.candidates], report]


@pytest.mark.parametrize(("short", "full"), FILLED)
def test_what_is_filled_in_is_what_could_have_been_named(llm: LLM, short: dict[str, Any], full: dict[str, Any]) -> None:
    given = {**short, "preference": {"weights": WEIGHTS}}
    spec = DecodingSpec.parse(given, PERSONAL)
    assert spec == DecodingSpec.parse(full)
    assert DecodingSpec.parse(spec.dump()) == spec
    assert told(run(llm, given)) == told(run(llm, full))


@pytest.mark.parametrize(("short", "full"), FILLED[:-1])
def test_other_weights_are_other_answers(llm: LLM, short: dict[str, Any], full: dict[str, Any]) -> None:
    """Candidates too, or their rewards."""
    other = run(llm, {**short, "preference": {"weights": {"size": -1.0, "letters": 1.0}}})
    assert told(other) != told(run(llm, full))


def test_more_weight_is_never_less_of_the_attribute(llm: LLM) -> None:
    """At each prompt, of the choice among the same answers: a property of weighted sums."""
    for text in ("Why?", "Tell me more of this", "x"):
        found = []
        for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
            weights = {"size": weight, "letters": 1.0 - weight}
            result = run(llm, {"strategy": "best_of_n", "n": 6, "preference": {"weights": weights}}, text)
            chosen = next(each for each in result.candidates if each.choice == 0)
            found.append((len(chosen.text), LETTERS.score((), chosen.text)))
        sizes, letters = zip(*found, strict=True)
        assert list(sizes) == sorted(sizes)
        assert list(letters) == sorted(letters, reverse=True)
        assert sizes[0] < sizes[-1] or letters[0] > letters[-1]


def test_every_search_that_needs_a_reward_takes_the_preferences() -> None:
    seen = []
    for name, strategy in strategies().items():
        field = strategy.params.model_fields.get("reward")
        if issubclass(strategy.params, Search) and field and field.is_required() and field.annotation is Expression:
            extra = {"treebon": {"dpo": "first"}, "cards": {"target": 1.0}}.get(name, {})
            spec = DecodingSpec.parse({"strategy": name, **extra, "preference": {"weights": WEIGHTS}}, PERSONAL)
            assert spec == DecodingSpec.parse({"strategy": name, **extra, "reward": REWARD})
            seen.append(name)
    assert {"best_of_n", "particle_filter", "qalign", "dts", "cards", "speculative_rejection"} <= {*seen}


def test_an_adapter_is_scaled_by_the_preference() -> None:
    weights = {"size": 0.75, "letters": 0.25}
    for short in ({"strategy": "panacea", "guide": "parts"}, {"steer": [{"method": "panacea", "guide": "parts"}]}):
        spec = DecodingSpec.parse({**short, "preference": {"weights": weights}}, PERSONAL)
        assert spec.parts[0].model_dump()["preference"] == weights
        assert DecodingSpec.parse(spec.dump()) == spec


def test_a_strategys_own_preference_stays_its_own() -> None:
    own = {"strategy": "rps", "preference": {"length": 1.0, "letters": 2.0}}
    assert DecodingSpec.parse(own, PERSONAL).dump()["preference"] == own["preference"]
    named = {"strategy": "rps", "preference": {"text": 1.0, "weights": 2.0}}  # rewards of these names
    assert DecodingSpec.parse(named, PERSONAL).dump()["preference"] == named["preference"]
    pad = {"strategy": "pad", "arm": "first", "preference": "Be kind."}
    assert DecodingSpec.parse(pad, PERSONAL).dump()["preference"] == "Be kind."


def test_words_go_into_a_persona() -> None:
    spec = DecodingSpec.parse({"strategy": "persona", "preference": {"text": "I like birds."}}, PERSONAL)
    assert spec == DecodingSpec.parse({"strategy": "persona", "text": "I like birds."})


def test_a_direction_keeps_attributes_of_weight_0_that_have_a_reward() -> None:
    weights = {"size": 1.0, "letters": 0.0, "tone": 0.0}
    spec = DecodingSpec.parse({"strategy": "rps", "preference": {"weights": weights}}, PERSONAL)
    rewards = {"size": {"guide": "length", "weight": 0.5}}
    assert spec == DecodingSpec.parse(
        {"strategy": "rps", "preference": {"size": 1.0, "letters": 0.0}, "rewards": rewards}
    )


@pytest.mark.parametrize(
    ("decoding", "weights", "words"),
    [
        ({"strategy": "rps"}, {"size": 1.0}, "rps needs two attributes with rewards, .* only 'size' has one"),
        ({"strategy": "rps"}, {"size": 1.0, "tone": 0.0}, "rps needs two attributes with rewards"),
        ({"strategy": "genarm"}, {"tone": 1.0}, "genarm follows attributes that have an arm"),
        ({"prompt": [{"method": "persona"}], "steer": [{"method": "genarm"}]}, {"tone": 1.0}, "name `arm` or `arms`"),
    ],
)
def test_what_an_attribute_lacks_is_said(decoding: dict[str, Any], weights: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse({**decoding, "preference": {"weights": weights}}, PERSONAL)
    assert caught.value.param == "decoding.preference"


def test_only_what_counts_needs_a_reward() -> None:
    short = {"strategy": "best_of_n", "preference": {"weights": {"size": 1.0, "tone": 0.0}}}
    assert DecodingSpec.parse(short, PERSONAL).dump()["reward"] == {"sum": [{"guide": "length", "weight": 0.5}]}
    arms = {"strategy": "genarm", "preference": {"weights": {"size": 0.5, "tone": 1.0}}}
    assert DecodingSpec.parse(arms, PERSONAL).dump()["arms"] == {"first": 0.5}


@pytest.mark.parametrize(
    ("preference", "param", "words"),
    [
        ({"weights": {"sise": 1.0}}, "weights.sise", "no attribute is named 'sise': did you mean 'size'"),
        ({"weights": {"size": 1.5}}, "weights.size", "less than or equal to 1"),
        ({"weights": {"size": "much"}}, "weights.size", "valid number"),
        ({"weights": {}}, "weights", "at least 1"),
        ({"weights": {"tone": 1.0}}, "weights.tone", "'tone' has no reward"),
        ({"weights": {"size": 0.0}}, "", "the preference weighs nothing that answers can be scored by"),
        ({"text": "Be kind."}, "", "the preference weighs nothing that answers can be scored by"),
        ({"weight": {"size": 1.0}}, "weight", "unknown key 'weight': did you mean 'weights'"),
        ({"text": "Be kind.", "infer": "teller"}, "", "this one has text and infer"),
        ({}, "", "this one has none of them"),
        ("kind", "", "a preference is an object"),
        ({"infer": "teler"}, "infer", "'teler' is no preference guide: did you mean 'teller'"),
        ({"infer": "first"}, "infer", "'first' is no preference guide; configured: teller"),
        ({"profile": "nobody"}, "profile", "there is no profile 'nobody'"),
    ],
)
def test_what_cannot_be_followed_is_refused(llm: LLM, preference: Any, param: str, words: str) -> None:
    request = GenerationRequest(messages=ASKED, decoding={"strategy": "best_of_n", "preference": preference})
    with pytest.raises(InvalidRequest, match=words) as caught:
        llm.prepare(request)
    assert caught.value.param == "decoding.preference" + (f".{param}" if param else "")


@pytest.mark.parametrize(
    "decoding",
    [
        {},
        {"strategy": "best_of_n", "reward": "length"},
        {"strategy": "genarm", "arm": "first"},
        {"strategy": "self_consistency"},
        {"prompt": [{"method": "persona", "text": "Be kind."}]},
    ],
)
def test_a_preference_that_nothing_uses_is_refused(decoding: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="nothing here goes by the preference") as caught:
        DecodingSpec.parse({**decoding, "preference": {"weights": WEIGHTS}}, PERSONAL)
    assert caught.value.param == "decoding.preference"


@pytest.mark.parametrize("short", [short for short, _ in FILLED])
def test_what_a_guide_infers_equals_the_weights_that_it_tells(llm: LLM, short: dict[str, Any]) -> None:
    given = {**short, "preference": {"infer": "teller"}}
    for text in ("Why?", "Tell me more of this"):
        inferred = run(llm, given, text)
        weights = inferred.report["preference"]
        assert sum(weights.values()) == pytest.approx(1.0)
        assert weights["size"] != pytest.approx(0.5, abs=0.01)
        assert told(inferred) == told(run(llm, {**short, "preference": {"weights": weights}}, text))


def test_prompts_of_one_batch_keep_their_own_weights(llm: LLM) -> None:
    decoding = {"strategy": "persona", "steer": [{"method": "genarm"}], "preference": {"infer": "teller"}}
    texts = ["Why?", "Tell me more of this", "x"]
    together = llm.chat([[Message(role="user", content=text)] for text in texts], SAMPLED, decoding=decoding)
    assert len({each.report["preference"]["size"] for each in together}) == 3
    for text, result in zip(texts, together, strict=True):
        assert told(result) == told(run(llm, decoding, text))


def test_the_guide_reads_what_the_client_sent(llm: LLM) -> None:
    """A persona that it fills in, and words beside it, do not sway it."""
    alone = {"strategy": "best_of_n", "n": 2, "preference": {"infer": "teller"}}
    beside = {**alone, "prompt": [{"method": "persona"}, {"method": "persona", "text": "Be kind."}]}
    weights = run(llm, alone).report["preference"]
    found = run(llm, beside)
    assert found.report["preference"] == pytest.approx(weights, rel=1e-5)
    explicit = run(llm, {**beside, "preference": {"weights": found.report["preference"]}})
    assert [each["text"] for each in found.report["prompt"]][1] == "Be kind."
    assert told(found) == told(explicit)


@pytest.mark.parametrize(
    "beside",
    [
        {"steer": [{"method": "genarm", "arm": "second", "alpha": 3.0}]},
        {"prompt": [{"method": "urial", "examples": 0, "system": ""}]},
    ],
)
def test_what_steers_the_answer_does_not_sway_the_guide(llm: LLM, beside: dict[str, Any]) -> None:
    alone = {"strategy": "best_of_n", "n": 2, "preference": {"infer": "teller"}}
    weights = run(llm, alone).report["preference"]
    assert run(llm, {**alone, **beside}).report["preference"] == pytest.approx(weights, rel=1e-5)


def test_a_floor_judges_what_an_inferred_preference_may_become(llm: LLM) -> None:
    """All weight on one reward may outweigh what even weights do not."""
    floor = {"reward": "third", "search": {"strategy": "best_of_n", "n": 2}, "request_weight": 0.8}
    given = {"strategy": "best_of_n", "n": 2, "preference": {"infer": "teller"}}
    with pytest.raises(InvalidRequest, match=r"may weigh 0\.8 in all"):
        run(llm, given, floor=Floor.model_validate(floor))
    run(llm, given, floor=Floor.model_validate({**floor, "request_weight": 9.0}))


def test_texts_are_inferred_about_too(llm: LLM) -> None:
    decoding = {"strategy": "best_of_n", "n": 3, "preference": {"infer": "teller"}}
    (inferred,) = llm.generate(["Once upon"], SAMPLED, decoding=decoding)
    weights = {"weights": inferred.report["preference"]}
    (explicit,) = llm.generate(["Once upon"], SAMPLED, decoding={**decoding, "preference": weights})
    assert told(inferred) == told(explicit)


def test_an_inferred_preference_stands_on_a_floor(llm: LLM) -> None:
    floor = Floor.model_validate(
        {"steer": [{"method": "genarm", "arm": "second", "alpha": 0.5}], "request_steer": True}
    )
    given = {"strategy": "best_of_n", "n": 3, "preference": {"infer": "teller"}}
    inferred = run(llm, given, floor=floor)
    weights = {"weights": inferred.report["preference"]}
    assert told(inferred) == told(run(llm, {**given, "preference": weights}, floor=floor))
    assert told(inferred) != told(run(llm, given))


def test_an_inferred_search_that_ends_early_ends_by_its_weights(llm: LLM) -> None:
    given = {"strategy": "best_of_n", "n": 4, "preference": {"infer": "teller"}, "budget": {"max_model_tokens": 16}}
    result = run(llm, given)
    assert result.stopped_by == "max_model_tokens"
    weights = {"weights": result.report["preference"]}
    full = run(llm, {**given, "preference": weights, "budget": {}})
    assert result.report["preference"]["size"] != 0.5
    assert len(result.choices[0].text) <= max(len(each.text) for each in full.candidates)


@pytest.mark.parametrize(("short", "full"), FILLED)
def test_the_echo_of_an_inferred_preference_leaves_out_what_it_fills_in(
    llm: LLM, short: dict[str, Any], full: dict[str, Any]
) -> None:
    given = {**short, "preference": {"infer": "teller"}}
    prepared = llm.prepare(GenerationRequest(messages=ASKED, decoding=given))
    echo = prepared.decoding
    assert echo["preference"] == {"infer": "teller"}
    assert DecodingSpec.parse(echo, llm.personal(None)) == prepared.spec
    assert "teller" in prepared.guides
    assert prepared.spec != llm.prepare(GenerationRequest(messages=ASKED, decoding=full)).spec


def test_a_guide_of_rewards_that_are_no_attributes_is_refused(llm: LLM) -> None:
    personal = Personal({"size": ATTRIBUTES["size"]}, llm.guides)
    with pytest.raises(InvalidRequest, match="'teller' weighs reward 'letters', which is the reward of no attribute"):
        DecodingSpec.parse({"strategy": "best_of_n", "preference": {"infer": "teller"}}, personal)


def test_profiles_are_their_callers_own(llm: LLM) -> None:
    assert llm.library is not None
    llm.library.profiles.put("one", "anna", {"weights": WEIGHTS})
    llm.library.profiles.put("one", "bert", {"infer": "teller"})
    llm.library.profiles.put("one", "cora", {"profile": "anna"})
    given = {"strategy": "best_of_n", "n": 4, "preference": {"profile": "anna"}}
    explicit = {**given, "preference": {"weights": WEIGHTS}}
    assert told(run(llm, given, tenant="one")) == told(run(llm, explicit))
    inferring = {**given, "preference": {"profile": "bert"}}
    assert "size" in run(llm, inferring, tenant="one").report["preference"]
    for tenant, id_, words in ((None, "anna", "no profile"), ("two", "anna", "no profile"), ("one", "cora", "another")):
        request = GenerationRequest(messages=ASKED, tenant=tenant, decoding={**given, "preference": {"profile": id_}})
        with pytest.raises(InvalidRequest, match=words) as caught:
            llm.prepare(request)
        assert caught.value.param == "decoding.preference.profile"
    llm.library.profiles.delete("one", "anna")
    with pytest.raises(InvalidRequest, match="there is no profile 'anna'"):
        run(llm, given, tenant="one")


def test_without_a_library_there_are_no_profiles() -> None:
    with pytest.raises(InvalidRequest, match="no profiles are kept here"):
        DecodingSpec.parse({"strategy": "best_of_n", "preference": {"profile": "anna"}}, PERSONAL)


@pytest.mark.parametrize("model", ["demo", "other"])
def test_default_attributes_fit_the_default_guides(model: str) -> None:
    guides, attributes = default_guides(model), default_attributes(model)
    for attribute in attributes.values():
        assert attribute.reward is None or {*attribute.reward.guides} <= guides.keys()
        assert attribute.arm is None or attribute.arm in guides
    assert sum(each.reward is not None for each in attributes.values()) == 3 + (model == "demo")
    assert any(each.reward is None for each in attributes.values())
