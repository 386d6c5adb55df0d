"""Files, progress, interrupts and the machine: nothing here knows of adapters."""
