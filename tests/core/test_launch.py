# SPDX-License-Identifier: Apache-2.0
"""From a chosen kernel to a call: binding, and the functions that users call."""

from __future__ import annotations

import copy
import inspect
import json
import multiprocessing
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.core import _fakes
from tests.core._fakes import TOY, Toy, card, kernel

import archkey
from archkey.capabilities import gather
from archkey.errors import ArchkeyError, ArgumentTypeError, Unsupported
from archkey.kernel import Kernel, resolve
from archkey.launch import Build, Program, bind, compile_for, interpreting
from archkey.ops import OPERATORS
from archkey.ops._contract import SESSIONS, public
from archkey.requirements import Requirement
from archkey.selection import Decision
from archkey.session import Session
from archkey.tuning import Row, Table

ALL = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


@pytest.fixture
def cpu() -> Iterator[Session]:
    """A session for calls on CPU tensors, with one kernel that does nothing."""
    before = dict(SESSIONS)
    SESSIONS.clear()
    session = _fakes.session(
        *(kernel("fast", name) for name in ("toy_op", "rmsnorm", "fused_qk_rmsnorm")),
        device=card("cpu", source="cpu"),
    )
    SESSIONS[torch.device("cpu")] = session
    yield session
    SESSIONS.clear()
    SESSIONS.update(before)


def builder(given: Kernel, source: str = "nvml", target: str = "cuda_sm90") -> Build:
    device = card(target, source=source)
    return Build(device, gather(device, [], None), TOY, given, {"triton": "3.6.0"})


def decision(chosen: Kernel) -> Decision:
    return Decision("toy_op", card().target, Toy(), chosen, False, ())


# ---- building


def test_bind_gives_the_kernels_own_function() -> None:
    """A plan adds nothing to the launch."""
    made: list[Any] = []

    def build(problem: Any, build: Build) -> Any:
        made.append(lambda *arguments: None)
        return made[0]

    _fakes.build_noted = build  # type: ignore[attr-defined]
    given = kernel("noted", "toy_op", "build_noted")
    plan = bind(Toy(), decision(given), builder(given))
    assert plan.run is made[0]
    assert plan.problem == Toy() and plan.decision.chosen is given


def test_a_builder_reads_its_tuning() -> None:
    table = Table((Row(64, requires=(Requirement("triton", ">=3.7"),)), Row(32)))
    assert builder(kernel(operator="toy_op", tuning=table)).tuning(Toy()) == 32
    with pytest.raises(ArchkeyError, match="kernel fake:fast has no tuning table"):
        builder(kernel(operator="toy_op")).tuning(Toy())


def test_a_program_must_name_the_parameters_of_its_body() -> None:
    """A constant in another place would otherwise become another parameter's value."""
    body = SimpleNamespace(arg_names=["x", "T", "N"], __name__="body")
    program = Program(body, {"x": "*bf16", "N": "i32"}, {"T": 4})
    with pytest.raises(ArchkeyError, match=r"body takes \['x', 'T', 'N'\], its Program gives"):
        compile_for(program, card())


def test_a_target_without_a_triton_backend() -> None:
    with pytest.raises(Unsupported, match="Triton has no backend for cpu"):
        compile_for(Program(None, {}, {}), card("cpu"))


@pytest.mark.parametrize(("text", "yes"), [("", False), ("0", False), ("1", True)])
def test_interpreting(text: str, yes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", text)
    assert interpreting() is yes


def test_a_pretended_device_launches_nothing_also_not_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    given = kernel(operator="toy_op")
    plan = bind(Toy(), decision(given), builder(given, "pretend", "rocm_gfx942"))
    with pytest.raises(Unsupported, match="rocm_gfx942 is pretended"):
        plan.run(torch.zeros(1))


# ---- functions


@ALL
def test_a_public_function_has_its_own_signature_and_documentation(operator: Any) -> None:
    function = resolve(operator.function)
    parameters = inspect.signature(function).parameters
    assert "session" not in parameters
    assert next(iter(inspect.signature(function.__wrapped__).parameters)) == "session"
    assert function.__name__ == operator.name
    assert function.__doc__ and function.__doc__ == function.__wrapped__.__doc__
    assert getattr(archkey, operator.name) is function
    assert pickle.loads(pickle.dumps(function)) is function


def test_called_by_position_or_by_keyword(cpu: Session) -> None:
    x, w = torch.ones(2, 8), torch.ones(8)
    for out in (
        archkey.rmsnorm(x, w),
        archkey.rmsnorm(x=x, weight=w),
        archkey.rmsnorm(x, weight=w),
    ):
        assert out.shape == x.shape
    assert archkey.rmsnorm(weight=w, x=x).shape == x.shape


def test_the_first_tensor_may_be_optional(cpu: Session) -> None:
    k, w = torch.ones(2, 8), torch.ones(8)
    q_out, k_out = archkey.fused_qk_rmsnorm(None, None, None, k, w, 1e-6)
    assert q_out is None and k_out.shape == k.shape
    q_out, k_out = archkey.fused_qk_rmsnorm(
        q=None, q_weight=None, q_eps=None, k=k, k_weight=w, k_eps=1e-6
    )
    assert q_out is None and k_out.shape == k.shape


def test_a_call_without_any_tensor() -> None:
    for args, kwargs in (((3,), {}), ((), {"x": None}), ((), {})):
        with pytest.raises(ArgumentTypeError, match="toy_op: expected tensors, found none"):
            _fakes.toy_op(*args, **kwargs)


def test_an_error_inside_the_call_is_not_taken_for_a_missing_session(cpu: Session) -> None:
    """The call looks its session up with try and except: what runs later must lie outside."""
    calls: list[int] = []

    @public
    def fails(session: Session, x: torch.Tensor) -> None:
        calls.append(1)
        raise KeyError("from the kernel")

    with pytest.raises(KeyError, match="from the kernel"):
        fails(torch.ones(2))
    assert calls == [1]


def test_a_method_is_the_same_function_on_a_given_session(cpu: Session) -> None:
    x, w = torch.ones(2, 8), torch.ones(8)
    other = _fakes.session(kernel("other"), device=card("cpu", source="cpu"))
    _fakes.BUILT.clear()
    assert cpu.rmsnorm(x, w).shape == other.rmsnorm(x, w).shape == x.shape
    assert _fakes.BUILT == ["fast", "other"]
    assert other.rmsnorm.__doc__ == archkey.rmsnorm.__doc__


# ---- problems


@ALL
def test_problems_are_keys_that_travel(operator: Any) -> None:
    for problem in operator.examples.values():
        assert problem.operator == type(problem)._field_defaults["operator"] == operator.name
        assert type(problem)._fields[-1] == "operator"
        for again in (
            pickle.loads(pickle.dumps(problem)),
            copy.deepcopy(problem),
            type(problem)(**json.loads(json.dumps(problem._asdict()))),
        ):
            assert again == problem and hash(again) == hash(problem)
            assert type(again) is type(problem)


def test_no_two_operators_share_a_key() -> None:
    problems = [p for o in OPERATORS.values() for p in o.examples.values()]
    assert len({(p.operator, p) for p in problems}) == len(set(problems))


def test_problems_and_decisions_go_to_a_worker_process_and_back() -> None:
    """Spawned, as workers of a process with a GPU context have to be."""
    problem = next(iter(OPERATORS["rmsnorm"].examples.values()))
    given = archkey.open("rocm_gfx950").decide(problem)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(copy.deepcopy, ((problem, given),)) == (problem, given)
