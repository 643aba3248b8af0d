# SPDX-License-Identifier: Apache-2.0
"""An emulator of NVIDIA's PTX for sm_90a and sm_100a: it executes what Triton leaves, on the CPU.

All threads of a workgroup (CTA) that stand at one place are one numpy vector, and each basic block
is one generated Python function. The way of a launch, module by module:

    launcher       arguments into parameters, tensors into allocations, workgroups one by one
    text           instructions with operands, labels, registers
    parser         PTX into these; functions: bodies of what it calls, in their places
    flow           basic blocks, and which registers outlive them
    program        the tables of the families together; functions of blocks, made when first run
    generate       a basic block into Python, through those tables:
                   alu (with arithmetic), convert, moves, collectives, control, asynchronous,
                   tensor_cores, tcgen05
    machine        what a workgroup has: registers, shared memory, mbarriers, tensor memory
    schedule       groups of threads, divergence, barriers, deadlocks, the order of everything
    shared         shared memory, with what is written and what the asynchronous proxy may see
    asynchronous   cp.async, mbarriers, and work that ends late
    descriptors    matrices in shared memory: swizzles, strides
    fragments      matrices in registers
    elements       bytes of matrices as numbers
    tensor_memory  columns, lanes, allocations
    counters       classes of instructions, for what is counted

What is not known stops the launch with its name. It is no hardware: see `core/docs/levels.md`.
"""
