"""Artel: train a language model together with strangers, and own it by accepted work.

The four packages lie at the root of the repository; links in this folder give them one name:
``artel.protocol``, ``artel.ledger``, ``artel.coordinator``, ``artel.node``.
"""

__version__ = "0.1.0"
