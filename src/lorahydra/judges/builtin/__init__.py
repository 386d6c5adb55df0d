"""One module for each judge that comes with lorahydra: its name is what `judge=NAME` says.

`__all__` of a module has one name, the judge's class, which is made from a `JudgeConfig`. What users may set and the
defaults (model, key variables, prices) stand in `conf/judge/NAME.yaml`; the SDK is the extra of the same name in
pyproject.toml. Nothing else in lorahydra has to know about a judge.
"""
