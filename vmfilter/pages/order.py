"""The order in which a dump is written: what matters first, so that a dump that ends early can still be opened."""

from __future__ import annotations

RANK_OF = bytes(256)
