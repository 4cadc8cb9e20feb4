"""The benchmark's fleet: two tiers, references only."""

from configs.profile import Admission, Batch, Profile, Tier


def bench_profile(batch_items: int) -> Profile:
    """Two tiers with the given batch; thresholds such that the null engine's unsure ones climb."""
    return Profile(
        name="bench",
        batch=Batch(max_items=batch_items, linger_ms=50),
        admission=Admission(max_items=100_000),
        tiers=(
            Tier(
                name="first",
                model="scout-s",
                accept_above=0.9,
                accept_below=0.1,
                max_batch=batch_items,
                threads=2,
            ),
            Tier(name="second", model="scout-m", max_batch=batch_items, threads=2),
        ),
    )
