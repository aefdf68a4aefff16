"""Does this machine compute right? What ``nnfast selftest`` runs.

>>> from nnfast.selftest import checks
>>> names = [check.name for check in checks("numpy")]
>>> "optimizer adam" in names
True
"""

from .suite import Check, Outcome, checks, run

__all__ = ["Check", "Outcome", "checks", "run"]
