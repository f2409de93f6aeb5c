"""Builds the C core (vmfilter._core) from csrc/, with every codec library that this machine has.

If the header or object of a library is missing, the build reports it and continues. The codec then comes from its
Python package, or is missing. Project metadata is in pyproject.toml.
"""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile

from cffi import FFI
from setuptools import setup

CSRC = pathlib.Path("csrc")  # relative to the project root, where builds run
FLAGS = ["-std=c11", "-O2", "-ftree-vectorize", "-Wall", "-Wextra", *os.environ.get("VMFILTER_CFLAGS", "").split()]

# macro, header, library, what it provides (Debian package)
LIBRARIES = [
    ("HAVE_ISAL", "isa-l/igzip_lib.h", "isal", "zlib level 1, fastest (libisal-dev)"),
    ("HAVE_LIBDEFLATE", "libdeflate.h", "deflate", "zlib, fast (libdeflate-dev)"),
    ("HAVE_LZO", "lzo/lzo1x.h", "lzo2", "lzo (liblzo2-dev)"),
    ("HAVE_SNAPPY", "snappy-c.h", "snappy", "snappy (libsnappy-dev)"),
    ("HAVE_ZSTD", "zstd.h", "zstd", "zstd (libzstd-dev)"),
    ("HAVE_LZ4", "lz4.h", "lz4", "lz4 (liblz4-dev)"),
]


def builds(header: str, *arguments: str) -> bool:
    """Return whether a program that includes the header builds. The arguments go to the compiler; -c skips linking."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")  # as setuptools
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "probe.c")
        source.write_text(f"#include <stddef.h>\n#include <{header}>\nint main(void) {{ return 0; }}\n")
        command = [*compiler, str(source), "-o", str(source.with_suffix("")), *arguments]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def need_compiler() -> None:
    """Exit if nothing can be compiled. Otherwise every library would be reported missing, which hides the reason."""
    if not builds("stdio.h"):
        sys.exit("vmfilter: no working C compiler: install one (Debian: gcc and libc6-dev), or set CC")
    if not builds("Python.h", "-c", f"-I{sysconfig.get_path('include')}"):
        sys.exit("vmfilter: Python.h is missing: install Python's headers (Debian: python3-dev)")


def core() -> FFI:
    """Return the cffi builder: declarations from vmfilter.h, sources from csrc/, and the libraries found."""
    without = set(os.environ.get("VMFILTER_WITHOUT", "").split(","))  # libraries to ignore, by -l name
    found = [x for x in LIBRARIES if x[2] not in without and builds(x[1], f"-l{x[2]}")]
    for entry in LIBRARIES:
        print(f"vmfilter: {'found  ' if entry in found else 'MISSING'} lib{entry[2]}, for {entry[3]}")
    header = (CSRC / "vmfilter.h").read_text()
    builder = FFI()
    builder.cdef(re.sub(r"^#.*$", "", header, flags=re.MULTILINE))
    builder.set_source(
        "vmfilter._core",
        '#include "vmfilter.h"',
        sources=sorted(str(p) for p in CSRC.glob("*.c")),
        depends=sorted(str(p) for p in CSRC.glob("*.h")),
        include_dirs=[str(CSRC)],
        define_macros=[(macro, "1") for macro, *_ in found],
        libraries=[library for _, _, library, _ in found],
        extra_compile_args=FLAGS,
    )
    return builder


need_compiler()
extension = core().distutils_extension(tmpdir="build")
options = {}
if not sysconfig.get_config_var("Py_GIL_DISABLED"):  # a free-threaded Python has no stable ABI
    extension.py_limited_api = True
    options["bdist_wheel"] = {"py_limited_api": "cp311"}
setup(ext_modules=[extension], options=options)
