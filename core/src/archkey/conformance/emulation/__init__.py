# SPDX-License-Identifier: Apache-2.0
"""Emulators: they execute on the CPU what Triton leaves for a target.

Of AMD's CDNA3 and CDNA4 that is assembly, in the modules here; of NVIDIA's sm_90a and sm_100a it is
PTX, in the room `ptx`.

It shows that the compiler's output computes what the reference does. It is no hardware: see
`core/docs/levels.md` for what it cannot show. The way of a launch, module by module:

    device       the device that stands in for a card, and whom it asks to launch
    driver       the same for Triton's own launches, kernel[grid](...)
    launcher     arguments into the kernarg segment, tensors into allocations
    text         assembly into instructions, labels, directives
    program      each instruction into a function, through the tables of the families:
                 scalar, flow, integers, floats, division, packed, convert, lanes, dpp,
                 lds, lds_atomics, vmem, atomics, matrix, scaled
    operands     registers and constants, as a kind of number
    wave         registers, lanes
    group        what a workgroup shares, and what it moves
    memory       allocations, and what lies outside of them
    execute      workgroups, waves, barriers
    shadow       LDS, and who wrote and read each byte since the last barrier
    spread       workgroups over processes; processes says how many
    again        workgroups that run twice, under other conditions
    numbers      formats and roundings that numpy lacks
    dialects     what the languages have in common: launching, mnemonics
    counters     instructions, bytes, FLOPs of what was launched; classes has those of AMD
    arguments    scalars as bytes, tensors as rooms of memory
    census       which instructions kernels have, and which of them are not known here

Opcodes, operands and modifiers that are not known stop the launch with their names. Needs numpy,
which is optional: nothing of it is imported before the first launch.
"""
