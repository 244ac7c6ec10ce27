"""The ledger on disk: entries, tree heads, and their check."""
