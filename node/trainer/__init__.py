"""The trainer: the child process that owns torch, ``python -m artel.node.trainer --fd N``.

The daemon drives it through :mod:`node.supervisor`; :mod:`node.trainer.loop` lists the commands.
"""
