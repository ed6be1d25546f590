"""Two vocabularies of one set of tokens: base ids in a guide's numbering, guide logits in the base's."""

from array import array
from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trimtab.engine.vocabulary import Vocabulary

NO_TOKEN = -1


class Translation:
    """Where each token of the base stands in a guide's vocabulary; built by `between`."""

    def __init__(self, ids: NDArray[np.int64], guide_rows: int) -> None:
        """Take the guide's id of every base id, `ids` (base_rows,), NO_TOKEN for none."""
        shared = min(len(ids), guide_rows)
        self.identity = bool((ids[:shared] == np.arange(shared)).all() and (ids[shared:] == NO_TOKEN).all())
        """ids that both have mean the same token"""
        self._ids = ids
        self._gathers: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def between(
        cls,
        base: Vocabulary,
        guide: Vocabulary,
        base_rows: int,
        guide_rows: int,
        *,
        base_eos: Collection[int] = (),
        guide_eos: Collection[int] = (),
    ) -> "Translation | None":
        """Return how the ids of `base` read in `guide`; None where an ordinary token has no counterpart.

        A token is matched by its bytes, special ones with special ones: the one of the same string first, else the
        highest id (SentencePiece numbers its byte tokens below the pieces that it prefers to them). Added tokens may
        lack a counterpart; one that ends a text (`base_eos`) then means the first of `guide_eos`. Ids without a string
        in either keep their place.
        """
        exact = base.exact and guide.exact
        keys = _keys(guide, guide_rows, exact)
        by_key = {key: id_ for id_, key in enumerate(keys)}
        names = {id_: name for name, id_ in base.tokens.items()}
        optional = base.added.keys() | base.special_ids
        ids = np.full(base_rows, NO_TOKEN, dtype=np.int64)
        for id_, key in enumerate(_keys(base, base_rows, exact)):
            twin = guide.tokens.get(names[id_], guide_rows) if key else id_
            if twin < guide_rows and keys[twin] == key:
                ids[id_] = twin
            elif key and key in by_key:
                ids[id_] = by_key[key]
            elif id_ in base_eos and guide_eos:
                ids[id_] = min(guide_eos)
            elif key and id_ not in optional:
                return None
        return cls(ids, guide_rows)

    def token(self, token_id: int) -> int:
        """Return the guide's id of one base token, NO_TOKEN if it has none."""
        return int(self._ids[token_id])

    def tokens(self, token_ids: "array[int]") -> "array[int]":
        """Return the guide's ids of base tokens, NO_TOKEN for those that it has not."""
        return array("q", self._ids[np.frombuffer(token_ids, dtype=np.int64)].tobytes())

    def logits(self, guide_logits: Tensor) -> Tensor:
        """Return a guide's logits (R, guide_rows) in the base's order, (R, base_rows), -inf where it has no token."""
        rows = len(self._ids)
        if self.identity:
            missing = rows - guide_logits.shape[-1]
            if missing > 0:
                return F.pad(guide_logits, (0, missing), value=-torch.inf)
            return guide_logits[..., :rows] if missing else guide_logits
        columns, absent = self._gather(guide_logits.device)
        return guide_logits.index_select(-1, columns).masked_fill_(absent, -torch.inf)  # (R, base_rows)

    def _gather(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the columns to fetch and which of them count for nothing, both (base_rows,)."""
        if device not in self._gathers:
            ids = torch.from_numpy(self._ids).to(device)
            self._gathers[device] = (ids.clamp(min=0), ids == NO_TOKEN)
        return self._gathers[device]


def _keys(vocabulary: Vocabulary, rows: int, exact: bool) -> list[bytes]:
    """Return what identifies each token across vocabularies, empty for ids without text.

    Where only a decoder knows the bytes (WordPiece's `##ing`), tokens are the same if their strings are.
    """
    keys = [b""] * rows
    for name, id_ in vocabulary.tokens.items():
        if id_ < rows and (text := vocabulary.token_bytes(id_) if exact else name.encode()):
            keys[id_] = (b"special " if id_ in vocabulary.special_ids else b"text ") + text
    return keys
