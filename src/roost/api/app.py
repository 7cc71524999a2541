"""The HTTP API: all routes in one list, and what holds for every one of them.

A request passes `guard.require_scope`, then its handler reads, does and answers; conditions become answers in
`errors.py`.
"""

from typing import TYPE_CHECKING

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, Reference, SecurityScheme
from litestar.types import ASGIApp, Receive, Scope, Send

from roost import __version__
from roost.api import (
    about,
    access,
    aliases,
    audit,
    cron,
    errors,
    exec_stream,
    execs,
    handouts,
    images,
    invitations,
    login,
    login_pages,
    mags,
    members,
    metrics,
    microvms,
    proxy_targets,
    query,
    quotas,
    saved_jobs,
    schedules,
    sleep,
    ssh_keys,
    templates,
    tokens,
    uploads,
    usage,
    users,
    webhooks,
    workspace_files,
    workspaces,
)
from roost.api.auditing import audited
from roost.api.bodies import MAX_BODY
from roost.api.followed import ended_with_its_token
from roost.api.guard import COOKIE, require_scope
from roost.api.head import headed, refuse_head
from roost.api.plane import ControlPlane
from roost.api.query import require_known_query
from roost.api.timing import Durations
from roost.errors import RoostError

if TYPE_CHECKING:
    from roost.gateways.http.server import Gateway

ROUTES = [
    about.health,  #        GET    /health
    mags.submit,  #         POST   /mags-jobs
    mags.list_jobs,  #      GET    /mags-jobs
    mags.pool_status,  #    GET    /mags-jobs/pool-status
    usage.show_usage,  #    GET    /mags-jobs/usage
    mags.show,  #           GET    /mags-jobs/{id}
    mags.status,  #         GET    /mags-jobs/{id}/status
    mags.logs,  #           GET    /mags-jobs/{id}/logs
    mags.stop,  #           POST   /mags-jobs/{id}/stop
    mags.execute,  #        POST   /mags-jobs/{id}/exec
    mags.execute_followed,  # POST /mags-jobs/{id}/exec/follow
    mags.sync,  #           POST   /mags-jobs/{id}/sync
    execs.write_to_script,  # POST /mags-jobs/{id}/input
    execs.start,  #         POST   /mags-jobs/{id}/execs
    execs.list_execs,  #    GET    /mags-jobs/{id}/execs
    execs.show,  #          GET    /mags-jobs/{id}/execs/{exec_id}
    execs.remove,  #        DELETE /mags-jobs/{id}/execs/{exec_id}
    execs.read_output,  #   GET    /mags-jobs/{id}/execs/{exec_id}/output
    execs.write_input,  #   POST   /mags-jobs/{id}/execs/{exec_id}/input
    execs.send_signal,  #   POST   /mags-jobs/{id}/execs/{exec_id}/signal
    execs.resize,  #        POST   /mags-jobs/{id}/execs/{exec_id}/resize
    exec_stream.stream,  #  WebSocket /mags-jobs/{id}/execs/{exec_id}/stream
    access.open_access,  #  POST   /mags-jobs/{id}/access
    access.show_access,  #  GET    /mags-jobs/{id}/access
    access.close_access,  # DELETE /mags-jobs/{id}/access
    aliases.create,  #      POST   /mags-url-aliases
    aliases.list_aliases,  # GET   /mags-url-aliases
    aliases.sign,  #        POST   /mags-url-aliases/{subdomain}/link
    aliases.remove,  #      DELETE /mags-url-aliases/{subdomain}
    saved_jobs.create,  #   POST   /jobs
    saved_jobs.list_jobs,  # GET   /jobs
    saved_jobs.show,  #     GET    /jobs/{id}
    saved_jobs.change,  #   PUT    /jobs/{id}
    saved_jobs.remove,  #   DELETE /jobs/{id}
    saved_jobs.run_again,  # POST  /jobs/{id}/run
    saved_jobs.status,  #   GET    /jobs/{id}/status
    saved_jobs.logs,  #     GET    /jobs/{id}/logs
    saved_jobs.vm_info,  #  GET    /jobs/{id}/vm-info
    saved_jobs.run_command,  # POST /jobs/{id}/ssh
    saved_jobs.cancel,  #   POST   /jobs/{id}/cancel
    saved_jobs.details,  #  GET    /jobs/{id}/details
    microvms.create,  #     POST   /microvms
    microvms.list_microvms,  # GET /microvms
    microvms.show,  #       GET    /microvms/{id}
    microvms.remove,  #     DELETE /microvms/{id}
    microvms.ssh_connection,  # GET /microvms/{id}/ssh-connection
    microvms.download_key,  # GET  /microvms/{id}/ssh-keys/download
    microvms.start,  #      POST   /microvms/{id}/start
    microvms.stop,  #       POST   /microvms/{id}/stop
    microvms.restart,  #    POST   /microvms/{id}/restart
    proxy_targets.create,  # POST  /proxy-targets
    proxy_targets.list_targets,  # GET /proxy-targets
    proxy_targets.show,  #  GET    /proxy-targets/{id}
    proxy_targets.change,  # PUT   /proxy-targets/{id}
    proxy_targets.remove,  # DELETE /proxy-targets/{id}
    sleep.change,  #        PATCH  /mags-jobs/{id}
    sleep.put_to_sleep,  #  POST   /mags-jobs/{id}/sleep
    sleep.wake,  #          POST   /mags-jobs/{id}/wake
    sleep.keep_awake,  #    POST   /mags-jobs/{id}/keepalive
    uploads.upload,  #      POST   /mags-files, /jobs/files
    workspaces.list_workspaces,  # GET    /mags-workspaces
    workspaces.remove,  #   DELETE /mags-workspaces/{id}
    workspaces.list_revisions,  #  GET    /mags-workspaces/{id}/revisions
    workspaces.restore,  #  POST   /mags-workspaces/{id}/restore
    workspaces.recover,  #  POST   /mags-workspaces/{id}/recover
    workspaces.check,  #    GET    /mags-workspaces/{id}/check
    workspace_files.read,  # GET   /mags-workspaces/{id}/files/{path}
    workspace_files.write,  # PUT  /mags-workspaces/{id}/files/{path}
    workspace_files.remove,  # DELETE /mags-workspaces/{id}/files/{path}
    cron.create,  #         POST   /mags-cron
    cron.list_crons,  #     GET    /mags-cron
    cron.show,  #           GET    /mags-cron/{id}
    cron.change,  #         PATCH  /mags-cron/{id}
    cron.remove,  #         DELETE /mags-cron/{id}
    cron.list_runs,  #      GET    /mags-cron/{id}/runs
    audit.list_entries,  #  GET    /audit
    quotas.show_own,  #     GET    /quotas
    quotas.show,  #         GET    /accounts/{id}/quotas
    quotas.change,  #       PUT    /accounts/{id}/quotas
    webhooks.create,  #     POST   /webhooks
    webhooks.list_webhooks,  # GET /webhooks
    webhooks.show,  #       GET    /webhooks/{id}
    webhooks.change,  #     PATCH  /webhooks/{id}
    webhooks.remove,  #     DELETE /webhooks/{id}
    webhooks.rotate,  #     POST   /webhooks/{id}/rotate
    webhooks.send_test,  #  POST   /webhooks/{id}/test
    webhooks.list_deliveries,  # GET /webhooks/{id}/deliveries
    webhooks.send_again,  # POST   /webhooks/{id}/deliveries/{message_id}/redeliver
    templates.create,  #    POST   /job-templates
    templates.list_templates,  # GET /job-templates
    templates.show,  #      GET    /job-templates/{id}
    templates.change,  #    PUT    /job-templates/{id}
    templates.remove,  #    DELETE /job-templates/{id}
    templates.run,  #       POST   /job-templates/{id}/run
    templates.list_revisions,  # GET /job-templates/{id}/revisions
    templates.show_revision,  #  GET /job-templates/{id}/revisions/{number}
    templates.restore,  #   POST   /job-templates/{id}/revisions/{number}/restore
    schedules.create,  #    POST   /schedules
    schedules.list_schedules,  # GET /schedules
    schedules.show,  #      GET    /schedules/{id}
    schedules.change,  #    PUT    /schedules/{id}; PATCH, too
    schedules.remove,  #    DELETE /schedules/{id}
    schedules.list_runs,  # GET    /schedules/{id}/runs
    images.list_images,  #  GET    /images
    images.pull,  #         POST   /images/{name}/pull
    images.build,  #        POST   /images/{name}/build
    images.import_archive,  # POST /images/{name}/import
    images.remove,  #       DELETE /images/{name}
    images.show_default,  #    GET    /default-image
    images.choose_default,  #  PUT    /default-image
    ssh_keys.add,  #        POST   /ssh-keys
    ssh_keys.list_keys,  #  GET    /ssh-keys
    ssh_keys.remove,  #     DELETE /ssh-keys/{key_id}
    ssh_keys.list_job_keys,  # GET /mags-jobs/{id}/ssh-keys
    ssh_keys.remove_job_key,  # DELETE /mags-jobs/{id}/ssh-keys/{key_id}
    login.log_in,  #        POST   /login
    login.log_out,  #       POST, DELETE /logout
    login.whoami,  #        GET    /whoami
    login.switch,  #        POST   /switch
    login.log_in_oidc,  #   GET    /login/oidc
    login.log_in_oidc_callback,  # GET /login/oidc/callback
    login.begin_device,  #  POST   /device/code
    login.ask_device,  #    POST   /device/token
    tokens.create,  #       POST   /tokens
    tokens.list_tokens,  #  GET    /tokens
    tokens.revoke,  #       DELETE /tokens/{token_id}
    users.create,  #        POST   /users
    users.list_users,  #    GET    /users
    users.change,  #        PATCH  /users/{name}
    users.set_password,  #  PUT    /users/{name}/password
    members.list_accounts,  # GET  /accounts
    members.create_account,  # POST /accounts
    members.list_members,  # GET   /members
    members.add_member,  #  POST   /members
    members.list_invited,  # GET   /invited
    members.withdraw_invitation,  # DELETE /invited/{user}
    invitations.list_invitations,  # GET    /invitations
    invitations.accept_invitation,  # POST   /invitations/{account}/accept
    invitations.decline_invitation,  # DELETE /invitations/{account}
    members.change_member,  # PATCH /members/{user}
    members.remove_member,  # DELETE /members/{user}
]
# open to everybody: /llms.txt, /docs/{name}, /mags.md, /mags.sh, /mags/latest/{name}
HANDOUTS = [handouts.llms, handouts.guide, handouts.skill, handouts.shell, handouts.program]

SCHEMES: dict[str, SecurityScheme | Reference] = {
    "token": SecurityScheme(type="http", scheme="bearer"),
    "session": SecurityScheme(type="apiKey", name=COOKIE, security_scheme_in="cookie"),
}


def _also_as_v2(app: ASGIApp) -> ASGIApp:
    """/api/v2 is /api/v1. To register every route twice would take 8 MB, and a quarter of a second at each start."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/api/v2/"):
            scope["path"] = "/api/v1/" + scope["path"].removeprefix("/api/v2/")
        await app(scope, receive, send)

    return call


def build(plane: ControlPlane, gateway: "Gateway | None" = None) -> Litestar:
    """`gateway` is counted by the metrics."""

    def the_plane(state: State) -> ControlPlane:
        return state.plane

    guards = [refuse_head, require_scope, require_known_query]
    api = Router("/api/v1", route_handlers=[*ROUTES], guards=guards, middleware=[audited, ended_with_its_token])
    pages = [login_pages.login_page, login_pages.log_in, login_pages.log_out]
    pages += [login_pages.device_page, login_pages.decide_device, login_pages.decide_invitation]
    scraped = Router("/", route_handlers=[metrics.metrics], guards=[require_scope])
    app = Litestar(
        route_handlers=[api, scraped, *pages, about.openapi, about.docs, *HANDOUTS],
        dependencies={"plane": Provide(the_plane, sync_to_thread=False)},
        exception_handlers={
            RoostError: errors.condition,
            HTTPException: errors.refusal,
            Exception: errors.fault,
        },
        request_max_body_size=MAX_BODY,
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="Roost",
            version=__version__,
            description="Runs scripts in isolated sandboxes. Calls need the header Authorization: Bearer TOKEN, or a "
            "browser's session.",
            path="/schema",
            render_plugins=[JsonRenderPlugin()],
            components=Components(security_schemes=SCHEMES),
            security=[{"token": []}, {"session": []}],
        ),
    )
    app.asgi_handler = headed(_also_as_v2(app.asgi_handler))
    query.remember(app)
    app.state.plane = plane
    app.state.gateway = gateway
    app.state.durations = Durations()
    return app
