"""The C core, built by setup.py from csrc/ with cffi. Its functions are documented in csrc/vmfilter.h."""

from typing import Any

ffi: Any
lib: Any
