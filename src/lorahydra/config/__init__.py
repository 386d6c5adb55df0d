"""Configuration: typed groups (`schema`) and how Hydra's composed tree becomes them (`compose`)."""
