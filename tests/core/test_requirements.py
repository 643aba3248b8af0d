# SPDX-License-Identifier: Apache-2.0
"""Ranges of distributions, known-bad versions, nightlies and aliases."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import PackageNotFoundError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from archkey.requirements import Requirement, distributions_of, installed_versions, within


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
        ("2.13.0a0+gitabc", ">=2.13", True),
        ("2.13.0a0+gitabc", "!=2.13.0", False),
        ("2.13.0a0+gitabc", "<2.13", False),
        ("3.6.0+rocm7.2", "==3.6.0", True),
        ("3.6.0+rocm7.2", ">=3.6,!=3.6.0", False),
        # a clause that names a build or a pre-release is about that very one
        ("2.11.0+cu130", "==2.11.0+cu130", True),
        ("2.11.0+cu128", "==2.11.0+cu130", False),
        ("2.11.0", "!=2.11.0+cu130", True),
        ("2.11.0+cu130", ">=2.11,!=2.11.0+cu130,!=2.11.1", False),
        ("2.13.0a0+gitabc", "!=2.13.0a0+gitabc", False),
        ("2.13.0a0+gitdef", "!=2.13.0a0+gitabc", True),
        ("3.7.0rc1", "!=3.7.0rc1", False),
        ("3.7.0", "!=3.7.0rc1", True),
        ("3.7.0.dev20261101", "!=3.7.0.dev20261101", False),
        ("3.7.0.dev20261102", "!=3.7.0.dev20261101", True),
        ("3.7.0.dev20261101", "==3.7.0.dev20261101", True),
        ("3.7.0.dev20261101", ">=3.7.0.dev20261101", True),
        ("3.7.0.dev20261031", ">=3.7.0.dev20261101", False),
        ("3.7.0", ">=3.7.0.dev20261101", True),
        ("3.7.0.dev20261101", ">=3.6,<3.7", False),
        ("3.7.0.dev20261101", "!=3.7.*", False),
        # a post-release is a release of its own
        ("0.7.2.post1", ">=0.7.2.post1", True),
        ("0.7.2", ">=0.7.2.post1", False),
        ("0.7.2.post1", "!=0.7.2.post1", False),
        ("0.7.2.post1", "!=0.7.2", True),
        ("anything", "", True),
        ("not a version", "", True),
        ("not a version", ">=1", False),
        ("not a version", "!=3.7.0", False),
        ("main-4f2c", "===main-4f2c", True),
        ("main-4f2c", "===main-4f2d", False),
        ("0.7.2.post1", ">0.7.2", False),  # PEP 440: the post-release of what is excluded
        ("0.7.2.post1", "~=0.7.2", True),
    ],
)
def test_within(version: str, specifier: str, inside: bool) -> None:
    assert within(version, specifier) is inside


RELEASES = st.builds(
    "{}.{}.{}{}".format, *[st.integers(0, 3)] * 3, st.sampled_from(["", ".post0", ".post2"])
)
NUMBERS = st.builds("{}.{}.{}".format, *[st.integers(0, 3)] * 3)
CLAUSES = st.builds("{}{}".format, st.sampled_from(["==", "!=", ">=", "<=", ">", "<"]), RELEASES)
RANGES = st.lists(CLAUSES | NUMBERS.map("~={}".format) | NUMBERS.map("!={}.*".format), max_size=3)
SUFFIXES = st.sampled_from(["a0", "rc1", ".dev20261101", "+cu130", "a0+gitabc", "rc1.dev3+rocm7.2"])


@given(RELEASES, RANGES.map(",".join))
def test_a_release_is_judged_as_packaging_judges_it(version: str, specifier: str) -> None:
    assert within(version, specifier) is SpecifierSet(specifier).contains(version)


@given(NUMBERS, SUFFIXES, RANGES.map(",".join))
def test_every_build_of_a_release_is_judged_like_it(
    release: str, suffix: str, specifier: str
) -> None:
    assert within(release + suffix, specifier) is within(release, specifier)


@given(NUMBERS, SUFFIXES, SUFFIXES)
def test_one_build_can_be_excluded_alone(release: str, suffix: str, other: str) -> None:
    excluded = f"!={release}{suffix}"
    assert not within(release + suffix, excluded)
    assert within(release, excluded)
    # A clause without a local label is about all builds of that version, as in PEP 440.
    same = other == suffix or other.startswith(f"{suffix}+")
    assert within(release + other, excluded) is not same


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
    assert distributions_of("triton") == {"pytorch-triton-rocm": "3.6.0"}


def test_a_rule_says_what_it_would_be_to_break_it() -> None:
    rule = Requirement("triton", "!=3.7.0", "wrong sums", "accuracy", "acme#7")
    assert rule.consequence == "accuracy: wrong sums (acme#7)"
    assert Requirement("triton").consequence == "crash"


def test_who_cites_a_source_changes_no_evidence() -> None:
    """Digests of kernels are made of this text, so those of kernels without a reference stay."""
    rule = Requirement("triton", ">=3.6", why="a test")
    cited = Requirement("triton", ">=3.6", why="a test", reference="acme#7")
    said = "Requirement(package='triton', specifier='>=3.6', why='a test', severity='crash')"
    assert repr(cited) == repr(rule) == said and cited != rule
