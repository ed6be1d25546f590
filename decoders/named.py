"""Which guides a decoding names, asked of its parts themselves and not looked for in their text."""

from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.draft import AS_IT_IS, Draft, PromptView
from trimtab.engine.plan import BASE, GatePlan
from trimtab.kernels.mixing import Transform


def named(spec: DecodingSpec) -> dict[str, str]:
    """The guides that a request's decoding names, without `base`; each with the path where it stands."""
    found: dict[str, str] = {}
    spec.check(choices=1, rewards=_Noting(found))
    spec.steer(_NotingDraft(found))
    return found


def rereading(spec: DecodingSpec) -> tuple[str, ...]:
    """Paths of what has a model read another prompt than the request's: without its system message, for instance."""
    draft = _NotingDraft({})
    spec.steer(draft)
    return tuple(draft.reread)


def writing(spec: DecodingSpec) -> tuple[str, ...]:
    """Paths of the models other than the base that a prompt part has write texts."""
    draft = _NotingDraft({})
    for path, part in spec.prompting:
        draft.where = path
        part.steer(draft)
    return tuple(draft.writers)


def shaping(spec: DecodingSpec) -> tuple[str, ...]:
    """Paths of what shapes the next token beside the base: parts that steer, and prompt parts that mix."""
    draft = _NotingDraft({})
    spec.steer(draft)
    return tuple(draft.shaped)


class _Noting(Collection[str]):
    """A collection that holds every name that it is asked for, and notes it."""

    def __init__(self, found: dict[str, str]) -> None:
        self._found = found

    def __contains__(self, name: object) -> bool:
        self._found.setdefault(str(name), "decoding")
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class _NotingDraft(Draft):
    """A draft that asks nothing of the guides but their names."""

    def __init__(self, found: dict[str, str]) -> None:
        super().__init__({}, lambda name, view: array("q", [0]), vocab_size=1)
        self._found = found
        self.reread: list[str] = []
        """paths of what reads another prompt than the request's"""
        self.shaped: list[str] = []
        """paths of what shapes the next token"""
        self.writers: list[str] = []
        """paths of other models that write"""

    def add(self, guide: str, weight: float, *, field: str, view: PromptView = AS_IT_IS) -> None:
        if replace(view, added=None) != AS_IT_IS:  # a view that adds to the prompt leaves nothing out
            self.reread.append(self._path(field))
        self._shape_with(guide, field)

    def value(self, guide: str, weight: float, transform: Transform = "identity", *, field: str) -> None:
        self._shape_with(guide, field)

    def scores_vocabulary(self, guide: str, *, field: str) -> bool:
        self._note(guide, field)
        return True

    def vector(self, guide: str, coeff: float, *, field: str) -> None:
        self._shape_with(guide, field)

    def adapt(
        self, guide: str, scales: Mapping[str, float], *, general: float = 1.0, field: str, scales_field: str
    ) -> None:
        self._shape_with(guide, field)

    def edit_hidden(self, guide: str, rate: float, steps: int, *, field: str) -> None:
        self._shape_with(guide, field)

    def gate(self, guide: str, plan: GatePlan, *, field: str) -> None:
        self._shape_with(guide, field)

    def call(self, guide: str, *, field: str) -> None:
        self._note(guide, field)

    def writer(self, guide: str, *, field: str) -> None:
        if guide != BASE:
            self.writers.append(self._path(field))
        self._note(guide, field)

    def embedder(self, guide: str, *, field: str) -> None:
        self._note(guide, field)

    def weigh(self, guide: str, rewards: Collection[str], *, field: str) -> None:
        self._note(guide, field)

    def _shape_with(self, guide: str, field: str) -> None:
        self.shaped.append(self._path(field))
        self._note(guide, field)

    def _note(self, guide: str, field: str) -> None:
        if guide != BASE:
            self._found.setdefault(guide, self._path(field))
