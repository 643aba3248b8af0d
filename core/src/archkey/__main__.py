# SPDX-License-Identifier: Apache-2.0
"""`python -m archkey` is the script `archkey`."""

from __future__ import annotations

from archkey.cli import main

main()
