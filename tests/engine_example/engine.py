# SPDX-License-Identifier: Apache-2.0
"""The engine: it opens nothing and knows no hardware, it is given a model and a session.

At start it prepares the Problems of all its steps and freezes the session, then captures a round
of generation for each padded batch size where the device can. A step in which all requests
generate is one replay; a step with prompts in it is one eager pass over everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from tests.engine_example import problems
from tests.engine_example.graphs import Replay, padded_sizes
from tests.engine_example.model import Batch, Decoder, Model
from tests.engine_example.pool import Pool, by_kind
from tests.engine_example.scheduler import Request, Scheduler, Step
from tests.engine_example.speculative import Round, accepted
from torch import Tensor

import archkey


@dataclass(frozen=True)
class EngineConfig:
    """Sizes and switches.

    pages, window_pages  of the two pools; page 0 of each is not given out
    context       longest sequence, prompt and output [tokens]
    max_requests  most requests that run at once
    token_budget  most tokens of a step
    chunk_tokens  most tokens of one prompt in a step
    draft_tokens  tokens verified at once, the last known one included; 1: no speculation
    batch_invariant  a request's logits are the same to the bit whatever runs beside it
    linear_rows   with batch_invariant: rows of every product, see `model.linear`
    graphs        replay rounds where the device can
    keep_logits   leave `[vocab]` of each token of the output in the request
    """

    pages: int
    window_pages: int = 0
    page_size: int = 16
    context: int = 1024
    max_requests: int = 8
    token_budget: int = 256
    chunk_tokens: int = 128
    draft_tokens: int = 1
    batch_invariant: bool = False
    linear_rows: int = 1
    graphs: bool = True
    keep_logits: bool = False


class Engine:
    """`add` requests and `step`, or `generate`. Greedy.

    model    the target
    session  of the device that the model's weights are on; the engine freezes it
    draft    a model with the same vocabulary, and the same window if it has window layers
    """

    def __init__(
        self,
        model: Model,
        session: archkey.Session,
        config: EngineConfig,
        draft: Model | None = None,
    ) -> None:
        if (draft is None) != (config.draft_tokens == 1):
            raise ValueError("a draft and draft_tokens > 1 go together")
        windows = {m.config.window for m in (model, draft) if m and "window" in m.config.layers}
        if len(windows) > 1:
            raise ValueError(f"target and draft share a window pool, found windows {windows}")
        self.session, self.config = session, config
        self.device = model.embedding.device
        self.pool = Pool(
            page_size=config.page_size,
            pages=config.pages,
            window_pages=config.window_pages,
            requests=config.max_requests,
            context=config.context,
            window=max(windows, default=0),
            stride=max(config.chunk_tokens, config.draft_tokens),
            device=self.device,
        )
        self.scheduler = Scheduler(
            self.pool,
            token_budget=config.token_budget,
            chunk_tokens=config.chunk_tokens,
            max_requests=config.max_requests,
            per_round=config.draft_tokens,
        )
        self.target = self._decoder(model)
        self.draft = None if draft is None else self._decoder(draft)
        self.round = Round(
            session, self.pool, self.target, self.draft, config.draft_tokens, config.max_requests
        )
        self.replay = Replay(self.round.body, padded_sizes(config.max_requests))
        plans = session.prepare(problems.of_steps(session, self.decoders, self.pool))
        session.freeze("error")
        # A degraded choice is the torch reference, which reads lengths on the host: it serves, but
        # cannot be captured.
        self.degraded = sorted({p.problem.operator for p in plans if p.decision.degraded})
        if config.graphs and session.capabilities.cuda_graph and not self.degraded:
            with torch.no_grad():
                self.replay.capture(self.device)

    @property
    def decoders(self) -> list[Decoder]:
        """The target, and the draft if there is one."""
        return [self.target] if self.draft is None else [self.target, self.draft]

    def add(self, prompt: Sequence[int], max_new_tokens: int) -> Request:
        """Queue a request; its `output` grows while the engine steps."""
        request = Request(list(prompt), max_new_tokens)
        self.scheduler.add(request)
        return request

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Outputs of `prompts`, in their order."""
        requests = [self.add(prompt, max_new_tokens) for prompt in prompts]
        while not all(request.finished for request in requests):
            self.step()
        return [request.output for request in requests]

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Run one step; returns the requests that it finished."""
        step = self.scheduler.step()
        if step.chunks:
            self._mixed(step)
        elif step.generating:
            self._generate(step)
        return self.scheduler.settle(step)

    def _generate(self, step: Step) -> None:
        """All requests are past their prompts: one round, replayed where the device can."""
        live = len(step.generating)
        self.round.load(step.generating)
        choices, right, logits = self.replay.run(live)
        self._take(step.generating, choices[:live], right[:live], logits)

    def _mixed(self, step: Step) -> None:
        """Verification of those that generate and chunks of prompts in one pass of the target."""
        live, n = len(step.generating), self.config.draft_tokens
        proposed = self.round.tokens[:0]
        if live:
            self.round.load(step.generating)
            proposed = self.round.propose(self.replay.padded(live))[:live]
        verified = list(zip(step.generating, proposed.tolist(), strict=True))
        chunks = [(r, r.prompt[r.cached : r.cached + tokens]) for r, tokens in step.chunks]

        tokens, positions, batch = self._ragged([*verified, *chunks])
        hidden = self.target.forward(tokens, positions, batch)
        if self.draft is not None:  # what it needs of the generating ones, it wrote as it proposed
            self.draft.forward(*self._ragged(chunks))
        for request, fed in chunks:
            request.cached += len(fed)
        # Logits of all that is verified, and of prompts that end here: at their last token.
        ends = accumulate((len(fed) for _, fed in chunks), initial=live * n - 1)
        completed = [
            (r, end) for (r, _), end in zip(chunks, list(ends)[1:], strict=True) if r.generating
        ]
        rows = [*range(live * n), *(row for _, row in completed)]
        logits = self.target.logits(hidden[torch.tensor(rows, device=self.device).long()])
        choices = logits.argmax(dim=-1)

        of_live = choices[: live * n].view(live, n)
        self._take(step.generating, of_live, accepted(proposed, of_live), logits[: live * n])
        first = choices[live * n :].tolist()
        for i, (request, _) in enumerate(completed):
            self._emit(request, first[i : i + 1], logits[live * n + i :])

    def _take(
        self, requests: list[Request], choices: Tensor, right: Tensor, logits: Tensor
    ) -> None:
        """Give requests what a round found. This waits for the device, as a scheduler has to."""
        n = self.config.draft_tokens
        found = zip(requests, choices.tolist(), right.tolist(), strict=True)
        for i, (request, tokens, count) in enumerate(found):
            request.accepted.append(count)
            request.cached += count + 1
            self._emit(request, tokens[: count + 1], logits[i * n :])

    def _emit(self, request: Request, tokens: list[int], logits: Tensor) -> None:
        """Append tokens, and no more than were asked for; row i of logits is token i's."""
        tokens = tokens[: request.max_new_tokens - len(request.output)]
        request.output += tokens
        if self.config.keep_logits:
            request.logits += logits[: len(tokens)].clone()  # a replay overwrites them

    def _ragged(self, items: list[tuple[Request, list[int]]]) -> tuple[Tensor, Tensor, Batch]:
        """Tokens, positions and batch of requests with the tokens that enter their caches."""

        def tensor(values: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)

        pool, starts, used = self.pool, [0], [0]
        positions: list[int] = []
        rows: list[int] = []
        for request, fed in items:
            end = request.cached + len(fed)
            positions += range(request.cached, end)
            rows += [request.held.row] * len(fed)
            starts.append(len(positions))
            used.append(used[-1] + end)
        # The host knows every length here, so the lists are ragged, as FlashInfer's kv_indices.
        slots = [pool.req_to_token[r.held.row, : r.cached + len(fed)] for r, fed in items]
        full, swa = pool.tables(len(items))
        tables = self.session.ragged_kv_indices_to_page_table(
            torch.cat(slots),
            tensor(used),
            full,
            page_size=pool.page_size,
            swa_page_table=swa,
            full_to_swa=pool.full_to_swa,
        )
        batch = Batch(
            pool.slots(tensor(rows, torch.int64), tensor(positions, torch.int64)),
            by_kind(tables),
            tensor(starts),
            tensor(used).diff(),
            max(len(fed) for _, fed in items),
        )
        tokens = tensor([token for _, fed in items for token in fed], torch.int64)
        return tokens, tensor(positions, torch.int64), batch

    def _decoder(self, model: Model) -> Decoder:
        config = self.config
        return Decoder(
            model,
            self.session,
            pages={"full": config.pages, "window": config.window_pages},
            page_size=config.page_size,
            context=self.pool.columns * config.page_size,
            max_tokens=config.token_budget,
            batch_invariant=config.batch_invariant,
            linear_rows=config.linear_rows if config.batch_invariant else None,
        )
