# SPDX-License-Identifier: Apache-2.0
"""What runs in a step: continuous batching with a token budget.

Requests that generate come first, so that their latency does not depend on who arrives. The rest
of the budget goes to prompts, in chunks, in the order of arrival. A request that the pool has no
pages for waits, and nobody overtakes it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tests.engine_example.pool import Holding, Pool
from torch import Tensor


@dataclass(eq=False)
class Request:
    """A prompt and what has become of it.

    cached    tokens of prompt and output whose keys are in the cache
    accepted  proposals accepted, one number a verification
    logits    of each token of the output, `[vocab]`, if the engine keeps them
    """

    prompt: list[int]
    max_new_tokens: int
    output: list[int] = field(default_factory=list)
    cached: int = 0
    holding: Holding | None = None
    accepted: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    @property
    def held(self) -> Holding:
        """Its pages; only a request that was admitted has some."""
        if self.holding is None:
            raise RuntimeError("the request was not admitted, or has finished")
        return self.holding

    @property
    def generating(self) -> bool:
        """Whether its prompt is in the cache."""
        return self.cached >= len(self.prompt)

    @property
    def finished(self) -> bool:
        """Whether its output is complete."""
        return len(self.output) >= self.max_new_tokens


@dataclass(frozen=True)
class Step:
    """Requests that generate, and prompts with the number of tokens that enter the cache."""

    generating: list[Request]
    chunks: list[tuple[Request, int]]


class Scheduler:
    """Requests that wait and requests that run.

    token_budget  most tokens of a step
    chunk_tokens  most tokens of one prompt in a step
    per_round     tokens that a generating request takes of the budget: those verified at once
    """

    def __init__(
        self, pool: Pool, *, token_budget: int, chunk_tokens: int, max_requests: int, per_round: int
    ) -> None:
        if token_budget <= max_requests * per_round:
            raise ValueError(
                f"token_budget: expected more than max_requests * draft_tokens = "
                f"{max_requests * per_round}, found {token_budget}; prompts would starve"
            )
        self.pool, self.per_round = pool, per_round
        self.token_budget, self.chunk_tokens = token_budget, chunk_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue a request; ValueError if it could never run."""
        if not request.prompt or request.max_new_tokens < 1:
            raise ValueError("a request needs a prompt, and at least one token to generate")
        if not self.pool.fits(self._longest(request)):
            raise ValueError(
                f"a prompt of {len(request.prompt)} and {request.max_new_tokens} new tokens exceed "
                "the context or the pool; give the engine more pages"
            )
        self.waiting.append(request)

    def step(self) -> Step:
        """The next step; its requests have their slots."""
        generating = [r for r in self.running if r.generating]
        budget = self.token_budget - self.per_round * len(generating)
        chunks: list[tuple[Request, int]] = []
        for request in [r for r in self.running if not r.generating]:
            budget -= self._chunk(request, budget, chunks)
        while budget and self.waiting:
            request = self.waiting[0]
            request.holding = self.pool.admit(self._longest(request))
            if request.holding is None:
                break
            self.running.append(self.waiting.popleft())
            budget -= self._chunk(request, budget, chunks)
        for request in generating:
            self.pool.grow(request.held, request.cached + self.per_round)
        for request, tokens in chunks:
            self.pool.grow(request.held, request.cached + tokens)
        return Step(generating, chunks)

    def settle(self, step: Step) -> list[Request]:
        """Give back what a step did not need; returns the requests that it finished."""
        requests = [*step.generating, *(request for request, _ in step.chunks)]
        for request in requests:
            self.pool.settle(request.held, request.cached)
        done = [request for request in requests if request.finished]
        for request in done:
            self.running.remove(request)
            self.pool.release(request.held)
            request.holding = None
        return done

    def _chunk(self, request: Request, budget: int, chunks: list[tuple[Request, int]]) -> int:
        tokens = min(budget, self.chunk_tokens, len(request.prompt) - request.cached)
        if tokens:
            chunks.append((request, tokens))
        return tokens

    def _longest(self, request: Request) -> int:
        # The last round may start when all but one token is there, whose predecessor is not yet
        # in the cache; it writes per_round tokens.
        return len(request.prompt) + max(request.max_new_tokens - 2, 0) + self.per_round
