# SPDX-License-Identifier: Apache-2.0
"""x"""


class TensorMemory:
    def __init__(self, workgroup):
        pass

    def check_done(self):
        pass
