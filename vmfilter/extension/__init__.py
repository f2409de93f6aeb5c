"""What a program in Python can ask of the crashed kernel, and decide by it: see docs/extensions.md.

from vmfilter.extension import Machine, walk

def rules(machine: Machine) -> None:
    for module in walk.linked(machine, machine.symbol("modules"), "module", "list"):
        machine.erase(module.address + machine.offset("module", "name"), 56)
"""

from vmfilter.errors import KernelError
from vmfilter.extension import walk
from vmfilter.extension.machine import Machine
from vmfilter.kernel.types.structures import Object

__all__ = ["KernelError", "Machine", "Object", "walk"]
