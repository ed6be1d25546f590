"""Blockwise controlled decoding by hand: of k sampled blocks the one of the highest value stands (arXiv 2310.17022)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.generation import Rows, config, prefilled, until
from baselines.models import Conversation, Language


@dataclass(frozen=True)
class CdBlockwise:
    """`value` maps the base's last hidden states at the ends of blocks, (N, D), to their values (N,)."""

    base: Language
    value: Callable[[Tensor], Tensor]
    k: int = 4
    block: int = 32
    sample: bool = True

    def answer(
        self, conversations: Sequence[Conversation], tokens: int, *, ignore_eos: bool = False
    ) -> list[list[int]]:
        """Answers of at most `tokens`, as ids without EOS; all conversations in one batch."""
        eos_ids = () if ignore_eos else self.base.eos_ids
        answers: list[list[int]] = [[] for _ in conversations]
        live = list(range(len(conversations)))
        rows = prefilled(self.base, conversations, self.k)
        for done in range(0, tokens, self.block):
            drawn, states = self._draw(rows, min(self.block, tokens - done))
            written = [until(each, eos_ids) for each in drawn.tolist()]
            last = torch.tensor([len(each) for each in written]).clamp_max(drawn.shape[1] - 1)  # an EOS is read, too
            values = self.value(states[torch.arange(len(last)), last]).view(-1, self.k)
            best: list[int] = (values.argmax(1) + torch.arange(len(live)) * self.k).tolist()
            for index, row in zip(live, best, strict=True):
                answers[index] += written[row]
            going = [(index, row) for index, row in zip(live, best, strict=True) if len(written[row]) == drawn.shape[1]]
            if not going:
                break
            live = [index for index, _ in going]
            self._keep(rows, drawn, [row for _, row in going])
        return answers

    def _draw(self, rows: Rows, tokens: int) -> tuple[Tensor, Tensor]:
        """A block for every row, (R, M), and the last hidden states at its tokens, (R, M, D).

        One token more than wanted, for the hidden state of the last one. Blocks run on behind an EOS: they are short.
        """
        settings = config(tokens + 1, sample=self.sample, eos_ids=())
        settings.return_dict_in_generate = settings.output_hidden_states = True
        out = self.base.model.generate(
            rows.ids,
            attention_mask=rows.mask,
            past_key_values=rows.cache,
            generation_config=settings,
        )
        begin = rows.ids.shape[1]
        states = torch.cat([step[-1][:, -1:] for step in out.hidden_states[1:]], 1)
        return out.sequences[:, begin : begin + tokens], states

    def _keep(self, rows: Rows, drawn: Tensor, best: list[int]) -> None:
        """Go on from the best blocks, in `k` copies each; the cache gives up the last token, whose logits are due."""
        chosen = torch.tensor(best).repeat_interleave(self.k)
        rows.ids = torch.cat([rows.ids, drawn], 1)[chosen]
        rows.mask = torch.cat([rows.mask, torch.ones_like(drawn)], 1)[chosen]
        rows.cache.crop(-1)
        rows.cache.batch_select_indices(chosen)
