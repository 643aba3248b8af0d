# SPDX-License-Identifier: Apache-2.0
"""The exam: cases from real models, tolerances with reasons, and how a kernel is judged."""
