"""The C core: setup.py builds it from csrc/ with cffi. csrc/vmfilter.h documents the functions."""

from typing import Any

ffi: Any
lib: Any
