# SPDX-License-Identifier: Apache-2.0
"""Functions, a thread's own memory, and what kernels ask of the driver."""

from __future__ import annotations

import pytest
import torch
from tests.emulation.ptx_machine import launch

from archkey.conformance.emulation.faults import Fault, UnknownInstruction

_TWICE = """
.func (.param .b32 func_retval0) twice(.param .b32 twice_param_0)
{
    .reg .pred %p<2>;
    .reg .b32 %r<4>;
    ld.param.b32 %r1, [twice_param_0];
    st.param.b32 [func_retval0], %r1;
    setp.gt.u32 %p1, %r1, 63;
    @%p1 ret;
    add.s32 %r2, %r1, %r1;
    st.param.b32 [func_retval0], %r2;
    ret;
}
"""
_CALL = (
    *("{", ".param .b32 param0;", ".param .b32 retval0;", "st.param.b32 [param0], {0};"),
    *("call.uni (retval0), twice, (param0);", "ld.param.b32 {1}, [retval0];", "}"),
)
_OUT = ("add.s64 %rd10, %rd0, %rd9;", "st.global.b32 [%rd10], %r50;")


def _call(source: str, target: str) -> list[str]:
    return [line.replace("{0}", source).replace("{1}", target) for line in _CALL]


def test_a_function_is_called_twice() -> None:
    """Threads from 64 on leave it early; each call has registers of its own."""
    out = torch.zeros(128, dtype=torch.int32)
    launch([*_call("%r0", "%r2"), *_call("%r2", "%r50"), *_OUT], out, before=_TWICE)
    twice = [n if n > 63 else 2 * n for n in range(128)]
    assert out.tolist() == [n if n > 63 else 2 * n for n in twice]


def test_functions_that_are_refused() -> None:
    out = torch.zeros(128, dtype=torch.int32)
    lines = _call("%r0", "%r2")
    with pytest.raises(UnknownInstruction, match="functions without a body: twice"):
        launch(lines, out, before=_TWICE.partition("\n{")[0] + ";\n")
    again = _TWICE.replace("    ret;\n}", "\n".join(_call("%r1", "%r3")) + "\n    ret;\n}")
    with pytest.raises(UnknownInstruction, match="a call of twice: not there, or recursive"):
        launch(lines, out, before=again)
    with pytest.raises(UnknownInstruction, match="32 bits of param0@1 at 0, which has b64"):
        launch([line.replace("st.param.b32", "st.param.b64") for line in lines], out, before=_TWICE)
    with pytest.raises(UnknownInstruction, match="a call that is not known: call %rd1"):
        launch(["call %rd1, (), table;"], out)


_LOCAL = (
    *(".local .align 8 .b8 __local_depot0[16];", "mov.b64 %rd20, __local_depot0;"),
    *("cvta.local.u64 %rd21, %rd20;", "cvt.u32.u64 %r41, %rd20;", "and.b32 %r42, %r0, 3;"),
    *("shl.b32 %r42, %r42, 2;", "add.s32 %r41, %r41, %r42;", "st.local.b32 [%r41], %r0;"),
)


def test_a_thread_has_memory_of_its_own() -> None:
    """Each thread's number at one of four places; read by a generic address."""
    out = torch.zeros(128, dtype=torch.int32)
    lines = [
        *(*_LOCAL, "cvt.u64.u32 %rd22, %r42;", "add.s64 %rd21, %rd21, %rd22;"),
        *("ld.b32 %r50, [%rd21];", *_OUT),
    ]
    launch(lines, out)
    assert out.tolist() == list(range(128))


def test_generic_addresses() -> None:
    """Odd threads read shared memory, even ones global memory, by one instruction."""
    x, out = torch.arange(128, dtype=torch.int32) + 1000, torch.zeros(128, dtype=torch.int32)
    lines = [
        *("shl.b32 %r41, %r0, 2;", "add.s32 %r41, %r41, %r1;", "st.shared.b32 [%r41], %r0;"),
        *("cvt.u64.u32 %rd20, %r41;", "cvta.shared.u64 %rd20, %rd20;", "and.b32 %r42, %r0, 1;"),
        *("setp.eq.s32 %p1, %r42, 1;", "add.s64 %rd21, %rd1, %rd9;", "bar.sync 0;"),
        *("selp.b64 %rd22, %rd20, %rd21, %p1;", "ld.b32 %r50, [%rd22];", *_OUT),
    ]
    launch(lines, out, x, shared=512)
    assert out.tolist() == [n if n % 2 else n + 1000 for n in range(128)]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([*_LOCAL, "ld.local.b32 %r50, [%r41+16];"], "4 bytes outside of the 16 bytes of a thread"),
        ([*_LOCAL, "ld.local.b32 %r50, [%r41+1];"], "local memory is accessed at no multiple of 4"),
        ([*_LOCAL[:5], "ld.local.b32 %r50, [%r41+4];"], "local memory is read that nobody wrote"),
        (["setp.lt.s32 %p1, %r0, 3;", "@%p1 trap;"], "trap by 3 threads, at line .*: @%p1 trap"),
    ],
)
def test_planted(lines: list[str], told: str) -> None:
    with pytest.raises(Fault, match=told):
        launch(lines, torch.zeros(128).int())


_STRINGS = """
.extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
.extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);
.global .align 1 .b8 said[8] = {116, 111, 111, 32, 98, 105, 103};
.global .align 1 .b8 form[14] = {37, 51, 117, 58, 32, 37, 46, 50, 102, 32, 37, 37, 10, 0};
"""


def test_an_assertion_that_fails() -> None:
    declared = [f".param .b{32 if n == 2 else 64} param{n};" for n in range(5)]
    lines = [
        *("setp.lt.s32 %p1, %r0, 100;", "@%p1 bra PAST;", "mov.b64 %rd20, said;", "{", *declared),
        *(f"st.param.b64 [param{n}], %rd20;" for n in (0, 1, 3, 4)),
        *("st.param.b32 [param2], 19;", "call.uni __assertfail, (param0, param1, param2, param3, param4);"),
        *("}", "trap;", "PAST:"),
    ]  # fmt: skip
    told = "assertion 'too big' of too big:19 in thread 100, at line .*__assertfail"
    with pytest.raises(Fault, match=told):
        launch(lines, torch.zeros(128).int(), before=_STRINGS)
    lines[0] = "setp.lt.s32 %p1, %r0, 200;"
    launch(lines, torch.zeros(128).int(), before=_STRINGS)


def test_what_threads_print(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        *(*_LOCAL[:3], "cvt.u32.u64 %r41, %rd20;", "st.local.b32 [%r41], %r0;"),
        *("mov.b64 %rd22, 0d3FF8000000000000;", "st.local.b64 [%r41+8], %rd22;"),
        *("setp.gt.s32 %p1, %r0, 1;", "@%p1 bra PAST;", "mov.b64 %rd23, form;", "{"),
        *(".param .b64 param0;", ".param .b64 param1;", ".param .b32 retval0;"),
        *("st.param.b64 [param0], %rd23;", "st.param.b64 [param1], %rd21;"),
        *("call.uni (retval0), vprintf, (param0, param1);", "}", "PAST:"),
    ]
    launch(lines, torch.zeros(128).int(), before=_STRINGS)
    assert capsys.readouterr().out == "  0: 1.50 %\n  1: 1.50 %\n"
