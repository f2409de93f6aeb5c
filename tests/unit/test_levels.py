"""Dump levels: which classes each bit excludes."""

from __future__ import annotations

import pytest

from vmfilter.frames.classes import PageClass
from vmfilter.pages.exclude import excluded_classes

ALWAYS = {PageClass.HWPOISON, PageClass.OFFLINE, PageClass.EXCLUDED, PageClass.PMEM_USERDATA}
OF_BIT = {
    1: set(),
    2: {PageClass.CACHE},
    4: {PageClass.CACHE, PageClass.CACHE_PRIVATE},
    8: {PageClass.USER},
    16: {PageClass.FREE},
    32: {PageClass.PMEM_METADATA},
}


@pytest.mark.parametrize("level", range(64))
def test_a_level_excludes_what_its_bits_do(level: int) -> None:
    assert excluded_classes(level) == ALWAYS.union(*(classes for bit, classes in OF_BIT.items() if level & bit))


def test_user_data_on_persistent_memory_is_kept_if_asked() -> None:
    assert excluded_classes(63, include_pmem_userdata=True) == excluded_classes(63) - {PageClass.PMEM_USERDATA}
