# SPDX-License-Identifier: Apache-2.0
"""One round of generation for a batch: propose, verify, accept; all of it on the device.

As in EAGLE with topk 1. The draft model proposes a chain of n - 1 tokens after the last known one;
the target runs all n as one attention call, n queries a sequence; the proposals that equal the
target's own choices are accepted, and one more token comes free. Without a draft n is 1, and a
round is plain decoding. What the draft reads is its own business (EAGLE's heads read the target's
hidden states): here it is a model with a cache of its own, in the same slots.

A round is a function of static buffers. What changes from replay to replay, lengths, rows and the
number of sequences, lies in tensors, and everything that follows from it is computed inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.engine_example.model import Batch, Decoder
from tests.engine_example.pool import Pool, by_kind
from tests.engine_example.scheduler import Request
from torch import Tensor

import archkey


class Round:
    """`self.load(requests)`, then `self.body(size)` with `size >= len(requests)`.

    draft_tokens  n: tokens verified at once, the last known one included
    """

    def __init__(
        self,
        session: archkey.Session,
        pool: Pool,
        target: Decoder,
        draft: Decoder | None,
        draft_tokens: int,
        requests: int,
    ) -> None:
        self.session, self.pool = session, pool
        self.target, self.draft, self.draft_tokens = target, draft, draft_tokens
        device = pool.req_to_token.device
        self.count = torch.zeros(1, dtype=torch.int32, device=device)
        self.lens = torch.zeros(requests, dtype=torch.int32, device=device)
        self.rows = torch.zeros(requests, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(requests, draft_tokens, dtype=torch.int64, device=device)
        self.tables = pool.tables(requests)
        most = max(requests + 1, draft_tokens)
        self.counting = torch.arange(most, dtype=torch.int32, device=device)

    def load(self, requests: Sequence[Request]) -> None:
        """Copy what a round reads. Rows past the requests become padding."""
        self.count.fill_(len(requests))
        self.lens.zero_()
        self.rows.zero_()
        device = self.lens.device
        for buffer, values in (
            (self.lens, [r.cached for r in requests]),
            (self.rows, [r.held.row for r in requests]),
            (self.tokens[:, 0], [r.output[-1] for r in requests]),
        ):
            buffer[: len(values)] = torch.tensor(values, dtype=buffer.dtype, device=device)

    def body(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The target's choices `[size, n]`, how many proposals are right `[size]`, logits."""
        tables = self._page_tables(size)
        tokens = self._chain(size, tables)
        positions, batch = self._batch(size, 0, self.draft_tokens, tables)
        logits = self.target.logits(self.target.forward(tokens.flatten(), positions, batch))
        choices = logits.argmax(dim=-1).view(tokens.shape)
        return choices, accepted(tokens, choices), logits

    def propose(self, size: int) -> Tensor:
        """Tokens to verify `[size, n]`: the last known one and the draft's chain after it."""
        return self._chain(size, self._page_tables(size))

    def _chain(self, size: int, tables: dict[str, Tensor]) -> Tensor:
        tokens = self.tokens[:size]
        if self.draft is None:
            return tokens
        # One pass more than there are proposals: the last one leaves its key in the cache, so that
        # the draft lacks none if all are accepted. Keys of rejected tokens are overwritten.
        for i in range(self.draft_tokens):
            hidden = self.draft.forward(tokens[:, i], *self._batch(size, i, 1, tables))
            if i + 1 < self.draft_tokens:
                tokens[:, i + 1] = self.draft.logits(hidden).argmax(dim=-1)
        return tokens

    def _batch(
        self, size: int, first: int, tokens: int, tables: dict[str, Tensor]
    ) -> tuple[Tensor, Batch]:
        """Positions, and the batch, of `tokens` tokens a sequence, `first` after the cached ones.

        The lengths are computed here, inside the captured region: a tensor made outside would be
        replayed as it was at the capture.
        """
        index, lens = self.counting[:size], self.lens[:size]
        # Sequences that pad the batch have no query and no key: the sum of queries stays.
        starts = torch.minimum(self.counting[: size + 1], self.count) * tokens
        used = (lens + (first + tokens)) * (index < self.count)
        positions = lens[:, None] + (self.counting[:tokens] + first)
        slots = self.pool.slots(self.rows[:size, None], positions)
        return positions.flatten(), Batch(slots, tables, starts, used, tokens)

    def _page_tables(self, size: int) -> dict[str, Tensor]:
        full, swa = (None if table is None else table[:size] for table in self.tables)
        tables = self.session.req_to_token_to_page_table(
            self.pool.req_to_token,
            self.rows[:size],
            self.lens[:size],
            full,
            page_size=self.pool.page_size,
            num_draft_tokens=self.draft_tokens,
            swa_page_table=swa,
            full_to_swa=self.pool.full_to_swa,
        )
        return by_kind(tables)


def accepted(tokens: Tensor, choices: Tensor) -> Tensor:
    """How many proposals of each row are right: `tokens[:, 1:]` until the first that differs.

    choices[:, i] is what the target would put after tokens[:, i].
    """
    return (tokens[:, 1:] == choices[:, :-1]).cumprod(dim=1).sum(dim=1)
