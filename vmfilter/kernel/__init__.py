"""The crashed kernel: its VMCOREINFO, page tables, memory model, struct pages and log."""
