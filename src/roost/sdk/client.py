"""`Roost` and `AsyncRoost`: every call, once, as a method of both. What a method does is told where its call is."""

from roost.sdk import accounts, cron, execs, files, images, jobs, saved, urls, webhooks, workspaces
from roost.sdk.drivers import AsyncClient, SyncClient, method, streamed


class Methods:
    """On Roost they return results, on AsyncRoost coroutines; those that stream return iterators."""

    # jobs
    run = method(jobs.run)
    run_and_wait = method(jobs.run_and_wait)
    wait = method(jobs.wait)
    status = method(jobs.status)
    get_job = method(jobs.get_job)
    find_job = method(jobs.find_job)
    logs = method(jobs.logs)
    output = streamed(jobs.output)
    follow_logs = streamed(jobs.follow_logs)
    follow_output = streamed(jobs.follow_output)
    list_jobs = method(jobs.list_jobs)
    update_job = method(jobs.update_job)
    stop = method(jobs.stop)
    sync = method(jobs.sync)
    sleep = method(jobs.sleep)
    wake = method(jobs.wake)
    keepalive = method(jobs.keepalive)
    new = method(jobs.new)
    resize = method(jobs.resize)
    exec = method(jobs.exec)
    usage = method(jobs.usage)
    pool_status = method(jobs.pool_status)

    # processes beside a job's script
    start_exec = method(execs.start_exec)
    list_execs = method(execs.list_execs)
    exec_status = method(execs.exec_status)
    follow_exec = streamed(execs.follow_exec)
    read_exec = streamed(execs.read_exec)
    write_exec = method(execs.write_exec)
    signal_exec = method(execs.signal_exec)
    resize_exec = method(execs.resize_exec)
    remove_exec = method(execs.remove_exec)
    wait_exec = method(execs.wait_exec)

    # files
    upload_file = method(files.upload_file)
    upload_files = method(files.upload_files)
    list_files = method(files.list_files)
    read_file = method(files.read_file)
    stream_file = streamed(files.stream_file)
    download_file = method(files.download_file)
    write_file = method(files.write_file)
    delete_file = method(files.delete_file)

    # workspaces
    list_workspaces = method(workspaces.list_workspaces)
    delete_workspace = method(workspaces.delete_workspace)
    list_revisions = method(workspaces.list_revisions)
    restore_workspace = method(workspaces.restore_workspace)
    recover_workspace = method(workspaces.recover_workspace)
    check_workspace = method(workspaces.check_workspace)

    # cron jobs
    cron_create = method(cron.cron_create)
    cron_list = method(cron.cron_list)
    cron_get = method(cron.cron_get)
    cron_update = method(cron.cron_update)
    cron_delete = method(cron.cron_delete)
    cron_runs = method(cron.cron_runs)

    # URLs, SSH, a browser
    enable_access = method(urls.enable_access)
    url = method(urls.url)
    get_access = method(urls.get_access)
    disable_access = method(urls.disable_access)
    url_alias_create = method(urls.url_alias_create)
    url_alias_list = method(urls.url_alias_list)
    url_alias_delete = method(urls.url_alias_delete)
    url_alias_link = method(urls.url_alias_link)
    list_ssh_keys = method(urls.list_ssh_keys)
    add_ssh_key = method(urls.add_ssh_key)
    remove_ssh_key = method(urls.remove_ssh_key)
    browser = method(urls.browser)

    # the account and its tokens
    whoami = method(accounts.whoami)
    health = method(accounts.health)
    list_tokens = method(accounts.list_tokens)
    create_token = method(accounts.create_token)
    revoke_token = method(accounts.revoke_token)
    quotas = method(accounts.quotas)
    list_accounts = method(accounts.list_accounts)
    list_members = method(accounts.list_members)
    add_member = method(accounts.add_member)
    change_member = method(accounts.change_member)
    remove_member = method(accounts.remove_member)
    list_invited = method(accounts.list_invited)
    withdraw_invitation = method(accounts.withdraw_invitation)
    list_invitations = method(accounts.list_invitations)
    accept_invitation = method(accounts.accept_invitation)
    decline_invitation = method(accounts.decline_invitation)

    # images
    list_images = method(images.list_images)
    pull_image = method(images.pull_image)
    build_image = method(images.build_image)
    import_image = method(images.import_image)
    remove_image = method(images.remove_image)
    default_image = method(images.default_image)
    choose_default_image = method(images.choose_default_image)

    # saved jobs, templates, schedules
    saved_job_create = method(saved.saved_job_create)
    saved_job_list = method(saved.saved_job_list)
    saved_job_get = method(saved.saved_job_get)
    saved_job_update = method(saved.saved_job_update)
    saved_job_delete = method(saved.saved_job_delete)
    saved_job_run = method(saved.saved_job_run)
    saved_job_cancel = method(saved.saved_job_cancel)
    saved_job_status = method(saved.saved_job_status)
    saved_job_details = method(saved.saved_job_details)
    saved_job_vm_info = method(saved.saved_job_vm_info)
    template_create = method(saved.template_create)
    template_list = method(saved.template_list)
    template_get = method(saved.template_get)
    template_update = method(saved.template_update)
    template_delete = method(saved.template_delete)
    template_revisions = method(saved.template_revisions)
    template_revision = method(saved.template_revision)
    template_restore = method(saved.template_restore)
    template_run = method(saved.template_run)
    schedule_create = method(saved.schedule_create)
    schedule_list = method(saved.schedule_list)
    schedule_get = method(saved.schedule_get)
    schedule_update = method(saved.schedule_update)
    schedule_delete = method(saved.schedule_delete)
    schedule_runs = method(saved.schedule_runs)

    # webhooks
    webhook_create = method(webhooks.webhook_create)
    webhook_list = method(webhooks.webhook_list)
    webhook_get = method(webhooks.webhook_get)
    webhook_update = method(webhooks.webhook_update)
    webhook_delete = method(webhooks.webhook_delete)
    webhook_rotate = method(webhooks.webhook_rotate)
    webhook_test = method(webhooks.webhook_test)
    webhook_deliveries = method(webhooks.webhook_deliveries)
    webhook_redeliver = method(webhooks.webhook_redeliver)


class Roost(Methods, SyncClient):
    """A Roost server. A program written for `mags.Mags` runs with this in its place."""


class AsyncRoost(Methods, AsyncClient):
    """A Roost server, for asyncio."""
