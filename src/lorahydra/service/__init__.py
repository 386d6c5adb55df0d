"""HTTP API and web page over studies; each study runs as a process of its own, and nothing here imports torch."""
