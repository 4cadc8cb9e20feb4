"""Where photos come from, and how they are checked, shrunk, batched and admitted."""
