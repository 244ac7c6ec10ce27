"""Ledgers that lie elsewhere: where from, how they are verified, copied and compared."""
