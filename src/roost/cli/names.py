"""Names that a shell completes by asking the server: of jobs and of workspaces.

Nothing is said where that fails, and a server that does not answer soon is not waited for: somebody is typing.
"""

import click
from click.shell_completion import CompletionItem

from roost.cli.connection import Api, Json
from roost.credentials import find_credentials
from roost.errors import RoostError

WITHIN = 2.0  # seconds
FINAL = ("completed", "error")


class JobName(click.ParamType[str]):
    """A job's id, name or workspace."""

    name = "job"
    path = "/api/v1/mags-jobs?page_size=50"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        where = ctx.params
        try:
            api = Api(find_credentials(where.get("url"), where.get("token"), where.get("state")))
            found = dict(self.names(api.call("GET", self.path, timeout=WITHIN), incomplete))
        except RoostError:
            return []
        return [CompletionItem(name, help=told) for name, told in found.items() if name.startswith(incomplete)]

    def names(self, answer: Json, incomplete: str) -> list[tuple[str, str]]:
        """Those that can be used now come first; ids only for who has begun to type one."""
        jobs = sorted(answer["jobs"], key=lambda job: job["status"] in FINAL)
        named = [(job["name"], job["status"]) for job in jobs]
        return [*named, *((job["request_id"], job["name"]) for job in jobs if incomplete)]


class WorkspaceName(JobName):
    name = "workspace"
    path = "/api/v1/mags-workspaces"

    def names(self, answer: Json, incomplete: str) -> list[tuple[str, str]]:
        return [(one["workspace_id"], f"{one['job_count']} job(s)") for one in answer["workspaces"]]


JOB = JobName()
WORKSPACE = WorkspaceName()
