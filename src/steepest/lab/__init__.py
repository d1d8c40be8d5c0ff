"""The lab: pretrain real models with any optimizer, compare them fairly, and say which is better with error bars.

The command `steepest` is its usual door (`steepest --help`). From Python the same steps are::

    from steepest.lab.config import TrainConfig
    from steepest.lab.training import train

    result = train(TrainConfig(method={"name": "lionmuon", "lr": 1e-2}), "runs/first")

The lab needs the extra `steepest[lab]`; the core never imports it. Where to start reading: `config` (what a run is),
`training` (the loop), `compare` (what runs a comparison needs), `report`.
"""
