"""`roost usage`: what the account has used, in all and by workspace."""

import click

from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import Api, Json, api_options

COLUMNS = ["WORKSPACE", "JOBS", "AWAKE", "FROZEN", "CPU", "MEMORY", "IN", "OUT", "STORED"]


@click.command()
@click.option("--days", type=click.IntRange(1, 365), default=30, show_default=True, help="Today and the days before.")
@as_json
@api_options
def usage(api: Api, days: int, raw: bool) -> None:
    """Show what your account has used: jobs, time, CPU, memory, traffic and stored files."""
    answer = api.call("GET", f"/api/v1/mags-jobs/usage?window_days={days}")
    if raw:
        return print_json(answer)
    click.echo(f"since {answer['since'][:10]} (UTC)")
    rows = [_row(word(one["workspace_id"]), one) for one in answer["workspaces"]]
    return print_table(COLUMNS, [*rows, _row("all", answer)])


def _row(name: str, used: Json) -> list[str]:
    seconds = [f"{used[key]:.1f} s" for key in ("vm_seconds", "frozen_seconds", "cpu_seconds")]
    sizes = [f"{used[key] / 1e6:.1f} MB" for key in ("bytes_in", "bytes_out", "stored_bytes")]
    memory = f"{used['memory_mb_seconds'] / 1024 / 3600:.3f} GB h"
    return [name, str(used["total_jobs"]), *seconds, memory, *sizes]
