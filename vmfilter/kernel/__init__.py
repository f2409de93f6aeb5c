"""What the crashed kernel says about itself: its VMCOREINFO, page tables, memory model, struct pages and log."""
