"""make chaos: a real fleet under hundreds of kills, its account and its ledger held against the truth."""
