"""Base models (hub, local, packaged) and the LoRA adapters on them.

- Files: `model_files` finds those of a model; `packaged`, `wheels` and `hub` download them, `gguf` converts them.
- Base models: `base` loads one per process, `pretrained` reads it, `devices` chooses device and dtype.
- Adapters: `lora` attaches and detaches them, `packing` side by side; `peft_format` and `metadata` keep them on disk;
  `merging` merges one into its base model; `restoring` puts a model back as it was.
- `generation`: answers in batches; `memory`: what to do when memory runs out.

What reads a model or an adapter raises `ModelError` if that is unknown, incomplete, broken or of the wrong kind,
`ServiceError` if it is on the hub, which cannot be reached, and `OutputError` if a folder cannot be written.
"""
