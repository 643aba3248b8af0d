# SPDX-License-Identifier: Apache-2.0
"""Asks the processes that measure, `bench.child`, and starts another one where one is gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archkey._process import Ended, Process
from archkey.errors import ArchkeyError

__all__ = ["Asker", "Terms"]


@dataclass(frozen=True)
class Terms:
    """How a run is held.

    device   as torch names it ("cuda:0"), or a target
    samples  calls that are timed, at most; seconds  of device time they may take
    timeout  seconds for one entry, compilation and tuning included; 0 is no limit
    seed     of all inputs
    """

    device: str
    samples: int = 40
    seconds: float = 0.4
    timeout: float = 600.0
    seed: int = 0


class Asker:
    """Asks measuring processes, and starts another one where one is gone.

    There are two: importing a library can change what torch does, so our own kernels are measured
    in a process that never sees a peer.
    """

    def __init__(self, terms: Terms, module: str = "archkey.bench.child") -> None:
        self._terms, self._module = terms, module
        self._processes: dict[bool, Process] = {}

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *exception: object) -> None:
        for peers_too in list(self._processes):
            self._close(peers_too)

    def ask(self, what: str, *, peers_too: bool = False, **question: Any) -> dict[str, Any]:
        """The answer; `peers_too`: of the process that may import peers.

        Raises Ended if there is none, ArchkeyError if the question was wrong.
        """
        if peers_too not in self._processes:
            options = {name: str(getattr(self._terms, name)) for name in _PASSED_ON}
            # A peer's Triton kernels keep what they tuned, so that the next process need not.
            environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_AUTOTUNING": "1"}
            self._processes[peers_too] = Process(self._module, options, environment)
        process = self._processes[peers_too]
        try:
            answer = next(process.ask({"ask": what, **question}, self._terms.timeout))
        except (Ended, KeyboardInterrupt):
            process.gone = True
            self._close(peers_too)
            raise
        if "error" in answer:
            raise ArchkeyError(answer["error"])
        if answer.get("usable") is False:
            process.gone = True
            self._close(peers_too)
        return answer

    def _close(self, peers_too: bool) -> None:
        self._processes.pop(peers_too).close()


_PASSED_ON = ("device", "seed", "samples", "seconds")
