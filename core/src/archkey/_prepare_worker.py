# SPDX-License-Identifier: Apache-2.0
"""The process that compiles for `archkey.preparing`: `python -m archkey._prepare_worker`.

A question is one program, named by the kernel and the Problem whose builder asks for it. The
answers are {"begun": true}, then {"error": text}, empty once the program is in the store.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from archkey._process import Say, serve
from archkey.errors import describe
from archkey.launch import Build, compile_for
from archkey.probe import Device
from archkey.session import Session
from archkey.settings import settings
from archkey.target import Target

__all__ = ["main"]


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(prog="archkey._prepare_worker", description=__doc__)
    parser.add_argument("--device", required=True, type=json.loads, help="Device.to_json")
    facts = parser.parse_args().device

    def start() -> Callable[[dict[str, Any], Say], None]:
        device = Device(**{**facts, "target": Target.parse(facts["target"])})
        session = Session(device, settings())

        def answer(question: dict[str, Any], say: Say) -> None:
            say(begun=True)
            try:
                _compile(session, **question)
            except (Exception, SystemExit) as error:  # a kernel's code may raise anything
                say(error=describe(error))
            else:
                say(error="")

        return answer

    serve(start)


def _compile(
    session: Session, operator: str, kernel: str, problem: dict[str, Any], number: int
) -> None:
    chosen = next(k for k in session.kernels(operator) if k.id == kernel)
    contract = session.operators[operator]
    build = Build(
        session.device, session.capabilities, contract, chosen, session.versions, draft=True
    )
    chosen.builder()(contract.problem(**problem), build)
    compile_for(build.programs[number], session.device)


if __name__ == "__main__":
    main()
