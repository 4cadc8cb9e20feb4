"""What travels, where it goes next, the ledger that holds it, and the broker that carries its doorbells."""
