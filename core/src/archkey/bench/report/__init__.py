# SPDX-License-Identifier: Apache-2.0
"""The report of a bench run: one HTML page that needs nothing else, and its model.

    document -> model.view -> plots + page.html -> one string

Only `page` and `plots` need the extra `report`; the terminal's summary does with the model.
"""
