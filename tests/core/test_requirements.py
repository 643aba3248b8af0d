# SPDX-License-Identifier: Apache-2.0
"""Ranges of distributions, known-bad versions, nightlies and aliases."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import PackageNotFoundError

import pytest
from packaging.specifiers import InvalidSpecifier

from archkey.requirements import Requirement, installed_versions, within


@pytest.mark.parametrize(
    ("version", "specifier", "inside"),
    [
        ("3.6.0", ">=3.6,!=3.7.0", True),
        ("3.7.0", ">=3.6,!=3.7.0", False),
        ("3.7.1", ">=3.6,!=3.7.0", True),
        ("3.5.1", ">=3.6", False),
        ("3.10.0", ">=3.6", True),  # not compared as text
        # a nightly is the release it leads to
        ("3.7.0.dev20260101", ">=3.7", True),
        ("3.7.0.dev20260101", "!=3.7.0", False),
        ("4.0.0rc1", ">=4", True),
        ("4.0.0rc1", "<4", False),
        # so is a local build
        ("2.11.0+cu130", ">=2.11", True),
        ("2.11.0+cu130", "!=2.11.0", False),
        ("2.11.0+cu130", "!=2.11.0+cu130", False),
        ("2.11.0+cu128", "!=2.11.0+cu130", True),
        ("3.7.0rc1", "!=3.7.0rc1", False),
        # a post-release is a release of its own
        ("0.7.2.post1", ">=0.7.2.post1", True),
        ("0.7.2", ">=0.7.2.post1", False),
        ("0.7.2.post1", "!=0.7.2.post1", False),
        ("0.7.2.post1", "!=0.7.2", True),
        ("anything", "", True),
        ("not a version", "", True),
        ("not a version", ">=1", False),
    ],
)
def test_within(version: str, specifier: str, inside: bool) -> None:
    assert within(version, specifier) is inside


def test_what_is_not_installed_satisfies_nothing() -> None:
    assert not Requirement("flashmla").satisfied_by({})
    assert Requirement("flashmla").satisfied_by({"flashmla": "1"})


def test_a_bad_rule_is_refused_when_written() -> None:
    with pytest.raises(InvalidSpecifier):
        Requirement("triton", "3.6 or so")
    with pytest.raises(ValueError, match="severity 'bad' is not one of crash, accuracy, speed"):
        Requirement("triton", ">=3.6", severity="bad")


def test_installed_versions_asks_the_metadata() -> None:
    found = installed_versions(["pytest", "no-such-thing-anywhere", "pytest"])
    assert found == {"pytest": importlib.metadata.version("pytest")}


def test_a_triton_that_came_with_rocm_counts_as_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "pytorch-triton-rocm":
            return "3.6.0"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert installed_versions(["triton"]) == {"triton": "3.6.0"}
