"""Paths of the API that several commands use."""

import urllib.parse

JOBS = "/api/v1/mags-jobs"


def path_of(job: str) -> str:
    """By a job's id, name or workspace."""
    return f"{JOBS}/{urllib.parse.quote(job, safe='')}"
