"""Which guide can do what: the look-ups of a draft, and the errors of a name that does not fit."""

from collections.abc import Mapping
from typing import TypeVar, cast

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import (
    EmbeddingGuide,
    Guide,
    HeadGuide,
    LanguageGuide,
    PreferenceGuide,
    ScorerGuide,
    TextGuide,
    VectorGuide,
)

G = TypeVar("G", bound=Guide)


class Roles:
    """The loaded guides by what they are; every look-up takes the `path` of the field that names the guide.

    All raise InvalidRequest that says what is there, what is needed and which guides would do.
    """

    def __init__(self, guides: Mapping[str, Guide], vocab_size: int) -> None:
        self._guides = guides
        self.named: set[str] = set()
        """guides that were asked for and found"""
        self._vocab_size = vocab_size

    def language(self, name: str, path: str) -> LanguageGuide:
        """A language model of any vocabulary."""
        return self._find(name, (LanguageGuide,), "a language model (role 'lm')", path)

    def mixable(self, name: str, path: str) -> LanguageGuide:
        """A language model whose logits line up with the base's."""
        guide = self.language(name, path)
        if guide.translation is None:
            self._refuse_vocabulary(
                guide, path, "use strategy nudging or wsd, which align by text, or a guide of the base's vocabulary"
            )
        return guide

    def scorer(self, name: str, path: str) -> ScorerGuide | HeadGuide:
        """What tells the value of every candidate: a decoder with a scalar head, or a head of the whole vocabulary."""
        needed = "a model that scores token by token (role 'reward' or 'value' on a decoder), or a value head"
        guide = cast(ScorerGuide | HeadGuide, self._find(name, (ScorerGuide, HeadGuide), needed, path))
        if isinstance(guide, HeadGuide):
            if guide.head.width == 1:
                raise InvalidRequest(
                    f"value head {name!r} gives one value for the text so far and none for its candidates: it serves "
                    "re_control; this needs a head of the whole vocabulary, or a scorer",
                    param=path,
                )
        elif guide.translation is None:
            self._refuse_vocabulary(guide, path, "use it as the reward of a search, or take one of the base's family")
        return guide

    def head(self, name: str, path: str) -> HeadGuide:
        """A value head with one output, whose gradient can be followed."""
        guide = self._find(name, (HeadGuide,), "a value head (role 'value', a .safetensors file on the base)", path)
        if guide.head.width != 1:
            raise InvalidRequest(
                f"value head {name!r} gives {guide.head.width} values, one for each token: it serves cd; this needs "
                "a head with one",
                param=path,
            )
        return guide

    def divided(self, name: str, path: str) -> LanguageGuide:
        """An adapter of the base with a block for each of its attributes."""
        guide = self.language(name, path)
        if not guide.attributes:
            others = (each for each in self._guides.values() if isinstance(each, LanguageGuide) and each.attributes)
            known = ", ".join(sorted(each.name for each in others)) or "none (trimtab train panacea makes one)"
            raise InvalidRequest(
                f"guide {name!r} has no blocks that a preference could scale; those that have: {known}", param=path
            )
        return guide

    def vector(self, name: str, path: str) -> VectorGuide:
        """A control vector."""
        return self._find(name, (VectorGuide,), "a control vector (role 'vector')", path)

    def preference(self, name: str, path: str) -> PreferenceGuide:
        """What weighs rewards by the prompt."""
        return self._find(name, (PreferenceGuide,), "preference weights (role 'preference')", path)

    def embedding(self, name: str, path: str) -> EmbeddingGuide:
        """What turns texts into vectors."""
        return self._find(name, (EmbeddingGuide,), "an embedding model (role 'embedding')", path)

    def is_head(self, name: str) -> bool:
        """Whether a guide reads the base's hidden state and so needs no lane."""
        return isinstance(self._guides[name], HeadGuide)

    def reader(self, name: str) -> LanguageGuide | ScorerGuide:
        """A guide found before, as what reads along in a lane."""
        guide = self._guides[name]
        assert isinstance(guide, LanguageGuide | ScorerGuide)
        return guide

    def _find(self, name: str, kinds: tuple[type[G], ...], needed: str, path: str) -> G:
        guide = self._guides.get(name)
        if isinstance(guide, kinds):
            self.named.add(name)
            return guide
        fitting = sorted(each for each, other in self._guides.items() if isinstance(other, kinds))
        known = ", ".join(fitting) or "none (add one under `guides` in the configuration)"
        if guide is None:
            given = f"no guide is named {name!r}"
        elif isinstance(guide, TextGuide):
            given = f"guide {name!r} (role {guide.role!r}) scores whole answers alone"
        else:
            given = f"guide {name!r} has the role {guide.role!r}"
        raise InvalidRequest(f"{given}; this needs {needed}; configured: {known}", param=path)

    def _refuse_vocabulary(self, guide: LanguageGuide | ScorerGuide, path: str, fix: str) -> None:
        raise InvalidRequest(
            f"guide {guide.name!r} has vocabulary {guide.model.vocabulary.size}, base {self._vocab_size}, and their "
            f"tokens differ: {fix}",
            param=path,
        )
