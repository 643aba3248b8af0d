# SPDX-License-Identifier: Apache-2.0
"""Opening sessions: devices of this machine, pretended ones, and operators as methods."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.core import _fakes
from tests.core._fakes import FAST, TOY, World, capability, card, kernel, plugin, ran
from tests.core._fakes import alone as alone

import archkey
from archkey import locate
from archkey import plugins as plugins_room
from archkey import session as room
from archkey.capabilities import Capability
from archkey.conditions import at_most, is_
from archkey.conformance.judge import torch_device
from archkey.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    TargetError,
    UnknownName,
    Unsupported,
)
from archkey.plugins import Loaded
from archkey.probe import Device
from archkey.session import Session
from archkey.settings import Settings
from archkey.target import Target

# ---- devices


Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """`machine(card(...), ...)`: this machine has these devices, and the CPU."""

    def build(*devices: Device) -> None:
        cpu = card("cpu", source="cpu")
        probed = SimpleNamespace(devices=(*devices, cpu))
        monkeypatch.setattr(locate, "probe", lambda pretend=None: probed)

        def load(target: Target, config: Settings) -> Loaded:
            fp8 = {"rocm_gfx942": "e4m3fnuz", "rocm_gfx950": "e4m3fn"}.get(target.key, "none")
            facts: list[Capability] = [capability("fp8", fp8)]
            new = kernel("new", "toy_op", needs=(is_("fp8", "e4m3fn"),))
            few = kernel("few", "toy_op", needs=(at_most("compute_units", 80),))
            home = target.key
            own = plugin(new, few, FAST, home=home, capabilities=facts, operators=(TOY,))
            return Loaded((own,), ())

        monkeypatch.setattr(room, "load", load)

    return build


def test_two_devices_in_one_process_decide_for_themselves(machine: Machine) -> None:
    machine(
        card("rocm_gfx942", 0, "kfd", compute_units=304),
        card("rocm_gfx950", 1, "kfd", compute_units=256),
        card("rocm_gfx942", 2, "kfd", compute_units=80),  # the same target, another card
    )
    sessions = [room.session_of(torch.device("cuda", i)) for i in range(3)]
    assert [s.device.target.key for s in sessions] == ["rocm_gfx942", "rocm_gfx950", "rocm_gfx942"]
    assert [s.fp8 for s in sessions] == ["e4m3fnuz", "e4m3fn", "e4m3fnuz"]
    assert [ran(s) for s in sessions] == ["fast", "new", "few"]
    assert room.session_of(torch.device("cuda", 1)) is sessions[1]


def test_concurrent_first_calls_open_one_session(machine: Machine) -> None:
    machine(card())
    barrier = threading.Barrier(8)

    def work(_: int) -> int:
        barrier.wait()
        return id(room.session_of(torch.device("cuda", 0)))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(8)))) == 1


def test_torch_may_count_in_another_order_than_the_driver(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uuid finds the card; its index is then torch's, which is what launches use."""
    machine(card("cuda_sm90", 0, uuid="GPU-aaaa"), card("cuda_sm100", 1, uuid="GPU-bbbb"))
    monkeypatch.setattr(locate, "_torch_uuid", lambda index: ["bbbb", "aaaa"][index])
    device = room.session_of(torch.device("cuda", 0)).device
    assert (device.target.key, device.index) == ("cuda_sm100", 0)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (None, ("cuda_sm90", 0, "nvml")),
        ("cuda", ("cuda_sm90", 0, "nvml")),
        ("cuda:1", ("cuda_sm100", 1, "nvml")),
        (torch.device("cuda", 1), ("cuda_sm100", 1, "nvml")),
        ("sm_100a", ("cuda_sm100", 1, "nvml")),
        ("cpu", ("cpu", 0, "cpu")),
        ("rocm_gfx950", ("rocm_gfx950", 0, "pretend")),
        (Target.parse("gfx942"), ("rocm_gfx942", 0, "pretend")),
    ],
    ids=str,
)
def test_open(machine: Machine, name: Any, found: tuple[str, int, str]) -> None:
    machine(card("cuda_sm90", 0), card("cuda_sm100", 1))
    device = archkey.open(name).device
    assert (device.target.key, device.index, device.source) == found


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cuda:7", ArgumentValueError, r"cuda:7 is not among the probed devices: cuda_sm90\[0\]"),
        (torch.device("meta"), ArgumentValueError, "meta:0 is not among"),
        ("cud_sm90", TargetError, "did you mean 'cuda_sm90'"),
        ("acme_x1", UnknownName, "unknown target 'acme_x1'"),
        (7, TargetError, "found 7"),
    ],
    ids=str,
)
def test_open_what_is_not_there(
    machine: Machine, name: Any, error: type[Exception], message: str
) -> None:
    machine(card("cuda_sm90", 0))
    with pytest.raises(error, match=message):
        archkey.open(name)


def test_the_environment_can_pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHKEY_TARGET", "gfx950")
    device = archkey.open().device
    assert (device.target.key, device.source) == ("rocm_gfx950", "pretend")


def test_a_pretended_device_is_compiled_for_and_not_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    session = _fakes.session(FAST, device=card("rocm_gfx950", source="pretend"))
    x = torch.zeros(2)
    with pytest.raises(Unsupported, match="rocm_gfx950 is pretended: .* TRITON_INTERPRET=1"):
        session.toy_op(x)
    assert _fakes.BUILT == ["fast"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreted = _fakes.session(FAST, device=card("rocm_gfx950", source="pretend"))
    assert ran(interpreted) == "fast"


# ---- where tensors live


HOST = {"source": "kestrel_k1", "torch_type": "cpu"}
NPU = {"source": "ascend_910", "torch_type": "npu"}


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        (card("cuda_sm90", 1), "cuda:1"),
        (card("rocm_gfx950", 1, "kfd"), "cuda:1"),
        (card("acme_x1", 1, "acme"), "acme:1"),
        (card("ascend_910", 1, **NPU), "npu:1"),
        (card("kestrel_k1", 1, **HOST), "cpu"),
        (card("cuda_sm90", 1, "pretend"), "cpu"),
        (card("cpu", 0, "cpu"), "cpu"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_where_a_sessions_tensors_live(device: Device, kind: str) -> None:
    assert torch_device(_fakes.session(FAST, device=device)) == kind
    assert device.to_json()["torch_type"] == device.torch_kind


@pytest.mark.parametrize("name", ["npu:1", SimpleNamespace(type="npu", index=1)], ids=str)
def test_a_torch_device_need_not_be_called_like_its_platform(machine: Machine, name: Any) -> None:
    machine(card("ascend_910", 0, **NPU), card("ascend_910", 1, **NPU))
    device = archkey.open(name).device
    assert (device.target.key, device.index) == ("ascend_910", 1)


def test_a_tensor_in_host_memory_is_the_cpus(machine: Machine) -> None:
    """An accelerator that works there comes first in the machine, and is opened by name."""
    machine(card("kestrel_k1", **HOST))
    x = torch.zeros(2)
    assert room.session_of(x.device).device.target.key == "cpu"
    assert archkey.open("cpu").device.target.key == "cpu"
    session = archkey.open("kestrel_k1")
    assert session.device.source == "kestrel_k1"
    assert session.toy_op(x) is x
    with pytest.raises(ArgumentValueError, match="of cpu:0, found a tensor on meta"):
        session.toy_op(x.to("meta"))


# ---- operators as methods


def test_tensors_of_another_device_are_refused_by_a_session(machine: Machine) -> None:
    machine(card())
    with pytest.raises(
        ArgumentValueError, match="of cuda:0, found a tensor on cpu; call archkey.toy"
    ):
        archkey.open("cuda:0").toy_op(torch.zeros(2))
    with pytest.raises(ArgumentValueError, match="of cpu:0, found a tensor on meta"):
        archkey.open("cpu").toy_op(x=torch.zeros(2, device="meta"))


def test_a_method_runs_on_tensors_of_its_device() -> None:
    session = _fakes.session(FAST, device=card("cpu", source="cpu"))
    x = torch.zeros(2)
    assert session.toy_op(x) is x
    assert session.toy_op.__doc__ == _fakes.toy_op.__doc__


def test_what_is_no_tensor_is_left_to_the_operator() -> None:
    with pytest.raises(ArgumentTypeError, match="rmsnorm: x must be a tensor, found ndarray"):
        archkey.open("cpu").rmsnorm(np.ones((2, 4)), torch.ones(4))


def test_a_session_has_no_other_methods() -> None:
    with pytest.raises(AttributeError, match="a Session has no 'rmsnrom'"):
        _ = _fakes.session(FAST).rmsnrom


def test_a_plugin_that_calls_an_operator_at_import_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for the session whose opening imports it."""
    world = World(tmp_path, monkeypatch)
    world.install(
        "cpu.acme",
        "import torch\narchkey.rmsnorm(torch.ones(1, 4), torch.ones(4))\n"
        + _fakes.kernels(_fakes.fast()),
    )
    monkeypatch.setattr(locate, "discover", world.found)
    monkeypatch.setattr(plugins_room, "discover", world.found)
    opened: list[Session] = []
    open_it = threading.Thread(
        target=lambda: opened.append(room.session_of(torch.device("cpu"))), daemon=True
    )
    open_it.start()
    open_it.join(20)
    assert opened
    assert [p.name for p in opened[0].plugins] == ["cpu.acme", "cpu"]
