"""Vectors of texts by a model of its own: a transformers encoder or decoder, pooled over its tokens."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.engine.errors import GuideError, InvalidRequest, ModelLoadError
from trimtab.engine.guides.config import EmbeddingConfig
from trimtab.engine.guides.sentences import Pooling, Recipe
from trimtab.engine.loading import LoadedModel, is_decoder
from trimtab.engine.rewards.base import batches
from trimtab.engine.rewards.contract import FULL_READ, PAIRS, TOLERANCE, Contract, Finding
from trimtab.engine.vocabulary import check_unicode

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]

_SAME: Final = 1e-6
"""two texts whose vectors are as near to each other as this are one to the model"""
_TOLD: Final = 40  # characters of a prompt that are shown


class TextEncoder:
    """A model whose last hidden states, pooled over a text's tokens, are its vector of length 1.

    mean: over all tokens, special ones too; cls: the first token; last: the last one. A longer text loses its end, not
    the special tokens there. Texts that are searched and questions that search them may have prefixes of their own, as
    E5 (arXiv 2212.03533) and BGE (arXiv 2309.07597) were trained with. Raises ModelLoadError for prefixes that leave
    no room for a text.
    """

    def __init__(self, name: str, loaded: LoadedModel, config: EmbeddingConfig, recipe: Recipe) -> None:
        self.name = name
        self.source, self.dtype = loaded.source, loaded.dtype
        self.recipe = recipe
        self.pooling: Pooling = _pooling(config, recipe, loaded)
        self.max_tokens = min(config.max_tokens or recipe.max_tokens or loaded.context_length, loaded.context_length)
        self.width: int = loaded.model.config.get_text_config().hidden_size
        self._model, self._tokenizer, self._rows = loaded.model, loaded.tokenizer, loaded.embedding_rows
        self._model.config.use_cache = False
        self._prefixes = {False: config.text_prefix, True: config.query_prefix}
        self._max_batch_tokens = config.max_batch_tokens
        tokenizer = loaded.tokenizer
        ids = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id)
        self._nothing = [next((id_ for id_ in ids if id_ is not None), 0)]  # a model reads at least one token
        self._pad_id = tokenizer.pad_token_id or 0  # masked, so that any id would do
        made = (loaded.fingerprint, self.pooling, self.max_tokens, recipe.lower, config.text_prefix)
        self.digest = hashlib.sha256(repr(made).encode()).hexdigest()[:16]
        """of everything that the vector of a text depends on; vectors of one digest can be compared"""
        for query in self._prefixes:
            if self._prefixes[query] and len(self.encode("", query=query)) >= self.max_tokens:
                field = "query_prefix" if query else "text_prefix"
                raise ModelLoadError(f"{field} alone fills the {self.max_tokens} tokens that the model reads: cut it")

    @property
    def prefixed(self) -> bool:
        """Whether texts or queries get a prefix."""
        return any(self._prefixes.values())

    def encode(self, text: str, *, query: bool = False) -> list[int]:
        """Return the ids of what the model reads, at most `max_tokens`; InvalidRequest for what it cannot read."""
        check_unicode(text)
        text = self._prefixes[query] + text
        text = text.lower() if self.recipe.lower else text
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        if ids and max(ids) >= self._rows:
            token = self._tokenizer.convert_ids_to_tokens(max(ids))
            raise InvalidRequest(f"guide {self.name!r} has no embedding for the token {token!r}: take it out")
        return ids or self._nothing

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        """Return the vectors (N, D) of texts; raises what `encode` and `vectors` do."""
        return self.vectors([self.encode(text, query=query) for text in texts])

    def vectors(self, rows: Sequence[list[int]]) -> Vectors:
        """Return the vectors (N, D) of encoded texts; GuideError for one that has no direction."""
        told = np.empty((len(rows), self.width), np.float32)
        for batch in batches([len(row) for row in rows], self._max_batch_tokens):
            pooled = self._pooled([rows[index] for index in batch])  # (B, D)
            lengths = pooled.norm(dim=1, keepdim=True)  # (B, 1)
            if not bool((lengths.isfinite() & (lengths > 0)).all()):
                raise GuideError(self.name, "a vector is zero or not finite: load it with dtype float32 or bfloat16")
            told[batch] = (pooled / lengths).cpu().numpy()
        return told

    @torch.inference_mode()
    def _pooled(self, rows: Sequence[list[int]]) -> Tensor:
        """(B, D) float32. Pads stand on the right, where the default positions of every model are those of a row."""
        longest, device = max(map(len, rows)), self._model.device
        ids = torch.tensor([row + [self._pad_id] * (longest - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)  # (B,)
        mask = torch.arange(longest, device=device) < lengths[:, None]  # (B, T)
        told = self._model(input_ids=ids, attention_mask=mask.long())
        hidden: Tensor = told.last_hidden_state.float()  # (B, T, D)
        match self.pooling:
            case "cls":
                return hidden[:, 0]
            case "last":
                return hidden[torch.arange(len(rows), device=device), lengths - 1]
            case "mean":
                return hidden.masked_fill(~mask[:, :, None], 0.0).sum(dim=1) / lengths[:, None]


def examine_encoder(encoder: TextEncoder) -> Contract:
    """Read seven short texts in several ways, once at load, and tell what was found; failures are logged.

    Raises GuideError and ModelLoadError for a model that gives no vectors.
    """
    texts = [pair.answer for pair in PAIRS]
    try:
        together = encoder.embed(texts)  # (7, D)
        alone = np.concatenate([encoder.embed([text]) for text in texts])
        pairs = np.concatenate([encoder.embed([text, texts[-1]])[:1] for text in texts])
        long = encoder.encode("word " * encoder.max_tokens)
        if encoder.max_tokens <= FULL_READ:
            encoder.vectors([long])
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:  # of the model's own code
        raise ModelLoadError(
            f"model {encoder.source!r} cannot turn texts into vectors ({error}): pass an encoder or a decoder of "
            "texts, or set max_tokens to the positions that it has"
        ) from error
    off = float(max(np.linalg.norm(other - together, axis=1).max() for other in (alone, pairs)))
    cosines = (together @ together.T)[np.triu_indices(len(texts), 1)]
    findings = (
        _vectors(encoder, cosines),
        _batches(encoder, off),
        Finding("truncation", True, f"a longer text is cut to {len(long)} tokens, the beginning of the text"),
        _prefixes(encoder),
    )
    for each in findings:
        if not each.ok:
            log.warning("guide %r: %s: %s -> %s", encoder.name, each.name, each.finding, each.fix)
    return Contract(findings)


def _vectors(encoder: TextEncoder, cosines: NDArray[np.float32]) -> Finding:
    told = f"{encoder.width} numbers ({encoder.pooling}), cosines {cosines.min():.2f} to {cosines.max():.2f} over seven"
    if cosines.min() > 1 - _SAME:
        fix = "set 'pooling' to what it was trained with, or name a checkpoint that was trained for this"
        return Finding("vectors", False, f"{told}: different texts are one and the same", fix)
    return Finding("vectors", True, f"{told}; digest {encoder.digest}")


def _batches(encoder: TextEncoder, off: float) -> Finding:
    if off > TOLERANCE[encoder.dtype]:
        fix = "set max_batch_tokens to 1: texts are then read one at a time, without padding"
        fix = fix if encoder.dtype == torch.float32 else "load it with dtype float32"
        return Finding("batches", False, f"vectors differ by {off:.2g} between batch 1, 2 and 7", fix)
    return Finding("batches", True, f"the same vectors at batch 1, 2 and 7 (within {off:.1g})")


def _prefixes(encoder: TextEncoder) -> Finding:
    if encoder.prefixed or not encoder.recipe.prompts:
        return Finding("prefixes", True, "as configured" if encoder.prefixed else "none")
    told = ", ".join(f"{kind} {prompt[:_TOLD]!r}" for kind, prompt in encoder.recipe.prompts.items())
    fix = "set query_prefix and text_prefix to those that it was trained with"
    return Finding("prefixes", True, f"none, though its folder has prompts: {told}", fix)


def _pooling(config: EmbeddingConfig, recipe: Recipe, loaded: LoadedModel) -> Pooling:
    if config.pooling != "auto":
        return config.pooling
    return recipe.pooling or ("last" if is_decoder(loaded.model.config) else "mean")
