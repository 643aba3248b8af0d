# SPDX-License-Identifier: Apache-2.0
"""Launches of a card, kept in a file, and the same launches on the emulator.

    python -m archkey.conformance.emulation.captured record cuda_sm90 FILE -o rmsnorm -o mla_decode
    python -m archkey.conformance.emulation.captured compare FILE

`record` runs on a machine with the card: it asks the exam's edge cases and keeps of some launches
the PTX, the arguments and the bytes of all tensors before and after. `compare` needs no card.

    archive   the file: what a launch is, written one by one, readable after a sudden end
    recorder  the process that launches, and keeps what it launched within bounds
    recording whose turn it is, until time is over; starts another recorder after a crash
    replay    a launch on the emulator, and what it wrote otherwise than the card
    rounding  how far apart they may be, and why
    replayer  the process that replays; comparing: all launches, and the document about them
"""
