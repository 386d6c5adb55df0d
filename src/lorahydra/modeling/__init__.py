"""Base models (hub, local, packaged) and the LoRA adapters on them.

- `packaged`: models that come from the package index; `sources`: where a model's files are; `hub`: the model
  hub.
- `base`: load a base model and its tokenizer; `devices`: which device and dtype.
- `adapters`: attach, detach, save and load an adapter; `restoring`: put a model back as it was.
"""
