# SPDX-License-Identifier: Apache-2.0
"""The search for a kernel's numbers on a card: what `archkey tune` does.

samples   which calls are timed, and which row of the table serves each
rig       one candidate on one call: compiled, checked against float64, timed
journal   every outcome, on disk as soon as it is there
search    the way through rows, calls and candidates, and what is chosen: pure
outcome   the new table, and what changed, for people and for scripts
"""
