# SPDX-License-Identifier: Apache-2.0
"""The workloads of the core's operators, one module a family; see `archkey.bench.workload`."""
