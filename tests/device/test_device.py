# SPDX-License-Identifier: Apache-2.0
"""What only a device shows: `make gpu` on a machine that has one."""

from __future__ import annotations

import threading

import pytest
import torch

import archkey
from archkey.conformance.cases.rmsnorm import models as cases
from archkey.conformance.judge import judge
from archkey.session import session_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")


def test_probe_finds_what_torch_finds() -> None:
    """Same cards, same order, without torch's help."""
    probed = [d for d in archkey.devices() if d.target.platform in ("cuda", "rocm")]
    assert len(probed) == torch.cuda.device_count()
    for index, device in enumerate(probed):
        facts = torch.cuda.get_device_properties(index)
        assert session_of(torch.device("cuda", index)).device == device
        assert device.compute_units == facts.multi_processor_count
        assert str(facts.uuid) in (device.uuid or "")


def test_facts_are_those_of_the_card() -> None:
    session = archkey.open("cuda:0")
    facts = torch.cuda.get_device_properties(0)
    assert session.capabilities.warp_size == facts.warp_size
    assert session.capabilities.shared_memory_bytes == facts.shared_memory_per_block_optin


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: f"{c.operator} {c.model}")
def test_kernels_of_the_target_agree_with_the_reference(case: object) -> None:
    session = archkey.open("cuda:0")
    result = judge(session, case, seed=torch.seed() % 2**31)  # type: ignore[arg-type]
    assert result.passed, result
    assert not result.degraded


def test_replay_of_a_captured_call_follows_its_inputs() -> None:
    x = torch.randn(64, 7168, device="cuda", dtype=torch.bfloat16)
    weight, out = torch.ones(7168, device="cuda", dtype=torch.bfloat16), torch.empty_like(x)
    archkey.rmsnorm(x, weight, 1e-6, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        archkey.rmsnorm(x, weight, 1e-6, out=out)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        replayed = out.clone()
        assert torch.equal(replayed, archkey.rmsnorm(x, weight, 1e-6))


@two_gpus
def test_launches_follow_the_tensors_not_the_current_device() -> None:
    torch.cuda.set_device(0)
    x = torch.randn(64, 7168, device="cuda:1", dtype=torch.bfloat16)
    out = archkey.rmsnorm(x, x[0], 1e-6)
    assert out.device == x.device
    assert torch.cuda.current_device() == 0
    assert torch.equal(out.cpu(), archkey.rmsnorm(x.to("cuda:0"), x[0].to("cuda:0"), 1e-6).cpu())


@two_gpus
def test_tensors_of_two_devices_are_refused() -> None:
    x = torch.randn(4, 512, device="cuda:0")
    with pytest.raises(ValueError, match="cuda:1"):
        archkey.rmsnorm(x, x[0].to("cuda:1"), 1e-6)
    with pytest.raises(ValueError, match="cuda:1"):
        archkey.open("cuda:1").rmsnorm(x, x[0], 1e-6)


@two_gpus
def test_threads_on_two_devices_at_once() -> None:
    wrong: list[object] = []

    def work(index: int) -> None:
        session = archkey.open(f"cuda:{index}")
        for seed in range(20):
            result = judge(session, cases.norm("rmsnorm", 64, 4096), seed)
            if not result.passed:
                wrong.append(result)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
