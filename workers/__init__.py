"""Who does the work: a Celery worker per tier and device, and the collector of their verdicts."""
