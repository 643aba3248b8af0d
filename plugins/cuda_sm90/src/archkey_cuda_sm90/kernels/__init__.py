# SPDX-License-Identifier: Apache-2.0
"""Bodies that Hopper alone has: warp groups that multiply from shared memory on their own."""
