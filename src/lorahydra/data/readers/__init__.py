"""File formats: rows of text files (CSV, JSON) and of columnar ones (Parquet, `datasets`), with their line numbers."""
