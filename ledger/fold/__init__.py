"""What the entries amount to: accounts, credit, rounds, and what each entry did."""
