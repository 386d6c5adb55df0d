"""Files, databases, processes, progress and interrupts; nothing here is specific to adapters."""
