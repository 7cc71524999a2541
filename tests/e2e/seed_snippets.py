"""The snippets of Mags' own documentation as programs: what stands there, verbatim, and what comes between.

`Snippet` texts are those of the API reference ("Submit Job", "URL Aliases", …) and of the documentation page ("Mags
Shell Script", …), with placeholders as they have them (`$TOKEN`, `eab1e214-...`, `<job-id>`). Plain strings between
them are ours: they fill in what a reader is meant to have, and check what came.
"""


class Snippet(str):
    """Stands in the documentation, line for line."""


CURL: list[str] = [
    Snippet("""\
curl -X POST https://api.magpiecloud.com/api/v1/mags-jobs \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{
    "script": "echo hello world",
    "type": "inline"
  }'"""),
    """is '.status == "accepted" and .message == "Mags job submitted successfully"'; ID=$(the .request_id); ended""",
    Snippet("""\
curl https://api.magpiecloud.com/api/v1/mags-jobs/$ID/status \\
  -H "Authorization: Bearer $TOKEN\""""),
    """is '.status == "completed" and .exit_code == 0 and .script_duration_ms >= 0 and .sleeping == false'""",
    Snippet("""\
curl https://api.magpiecloud.com/api/v1/mags-jobs/$ID/logs \\
  -H "Authorization: Bearer $TOKEN\""""),
    """is '.logs[0] | .message == "hello world" and .level == "info" and .source == "stdout"'""",
    Snippet("""\
curl "https://api.magpiecloud.com/api/v1/mags-jobs?page=1&page_size=10" \\
  -H "Authorization: Bearer $TOKEN\""""),
    """is '.jobs[0].request_id == $id and .page == 1 and .page_size == 10 and .total >= 1'""",
    Snippet("""\
curl -X POST https://api.magpiecloud.com/api/v1/mags-jobs \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{
    "script": "echo hello",
    "type": "inline",
    "workspace_id": "myproject"
  }'"""),
    "ID=$(the .request_id); ended; ID=$(persistent myproject)",
    Snippet("""\
curl -X POST https://api.magpiecloud.com/api/v1/mags-jobs/$ID/access \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{ "port": 22 }'"""),
    """is '.success and .access_type == "ssh_proxy" and (.ssh_private_key | contains("OPENSSH PRIVATE KEY"))'""",
    Snippet("""\
# Enable no-sleep
curl -X PATCH https://api.magpiecloud.com/api/v1/mags-jobs/$ID \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{ "no_sleep": true }'"""),
    "is .no_sleep",
    Snippet("""\
# Set startup command
curl -X PATCH https://api.magpiecloud.com/api/v1/mags-jobs/$ID \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{ "startup_command": "python3 -m http.server 8080" }'"""),
    """is '.startup_command == "python3 -m http.server 8080" and .no_sleep'; echo 'print(1)' > script.py""",
    Snippet("""\
curl -X POST https://api.magpiecloud.com/api/v1/mags-files \\
  -H "Authorization: Bearer $TOKEN" \\
  -F "file=@script.py\""""),
    """is '.file_id != "" and .file_name == "script.py" and .size == 9'""",
    Snippet("""\
curl https://api.magpiecloud.com/api/v1/mags-workspaces \\
  -H "Authorization: Bearer $TOKEN\""""),
    """is '.workspaces[] | select(.workspace_id == "myproject") | .has_active and .job_count >= 2'""",
    Snippet("""\
curl -X POST https://api.magpiecloud.com/api/v1/mags-jobs/$ID/stop \\
  -H "Authorization: Bearer $TOKEN\""""),
    """is '.success and .message == "Job stopped"'""",
    Snippet("""\
curl -X DELETE https://api.magpiecloud.com/api/v1/mags-workspaces/myproject \\
  -H "Authorization: Bearer $TOKEN\""""),
    """is ".success and .message == \\"Workspace 'myproject' deleted\\"\"""",
    Snippet("""\
curl -X POST https://api.magpiecloud.com/api/v1/mags-cron \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{
    "name": "nightly-backup",
    "cron_expression": "0 0 * * *",
    "script": "tar czf backup.tar.gz /data",
    "workspace_id": "backups"
  }'"""),
    """is '.name == "nightly-backup" and .enabled'; remove /mags-cron/$(the .id)""",
]

PYTHON: list[str] = [
    Snippet("""\
from mags import Mags

m = Mags()
result = m.run_and_wait("echo hello world")
print(result["status"])"""),
    'assert result["status"] == "completed" and result["exit_code"] == 0, result',
    Snippet("""\
from mags import Mags
m = Mags(api_token="your-token")
# or: export MAGS_API_TOKEN="your-token\""""),
    Snippet("""\
job = m.run("echo hello", workspace_id="myproject")
print(job["request_id"])"""),
    'ended(job["request_id"])',
    Snippet("""\
# Or run and wait for completion:
result = m.run_and_wait("echo hello", workspace_id="myproject")
print(result["status"])  # "completed\""""),
    """\
assert result["status"] == "completed"
request_id = persistent("myproject")""",
    Snippet("""\
status = m.status("eab1e214-...")
print(status["status"])  # "running\""""),
    'assert status["status"] == "running" and status["vm_id"] and status["url"], status',
    Snippet("""\
logs = m.logs("eab1e214-...")
for log in logs["logs"]:
    print(f"[{log['source']}] {log['message']}")"""),
    'assert logs["logs"][0]["message"] == "begun"',
    Snippet("""\
resp = m.list_jobs(page=1, page_size=10)
for job in resp["jobs"]:
    print(job["request_id"], job["status"])"""),
    'assert resp["jobs"][0]["request_id"] == request_id',
    Snippet("""\
# SSH access
ssh = m.enable_access(request_id, port=22)
print(f"ssh root@{ssh['ssh_host']} -p {ssh['ssh_port']}")"""),
    Snippet("""\
# HTTP access
access = m.enable_access(request_id, port=8080)
print(access.get("url"))"""),
    'assert access["success"] and access["url"] == status["url"]',
    Snippet("""\
# Enable no-sleep
m.update_job(request_id, no_sleep=True)"""),
    Snippet("""\
# Set startup command
m.update_job(request_id, startup_command="python3 -m http.server 8080")"""),
    'open("script.py", "w").write("print(1)"); open("data.csv", "w").write("1,2")',
    Snippet("""\
file_id = m.upload_file("script.py")
file_ids = m.upload_files(["script.py", "data.csv"])"""),
    "assert file_id and len(set(file_ids)) == 2",
    Snippet("m.sync(request_id)"),
    Snippet("""\
ws = m.list_workspaces()
for w in ws["workspaces"]:
    print(w["workspace_id"], w["job_count"])"""),
    'assert "myproject" in [w["workspace_id"] for w in ws["workspaces"]]',
    Snippet("""\
m.url_alias_create("my-api", "myproject")
aliases = m.url_alias_list()
m.url_alias_delete("my-api")"""),
    'assert [one["subdomain"] for one in aliases["aliases"]] == ["my-api"]',
    Snippet('m.stop("myproject")  # accepts name, workspace ID, or request ID'),
    Snippet('m.delete_workspace("myproject")'),
    Snippet("""\
cron = m.cron_create(
    name="nightly-backup",
    cron_expression="0 0 * * *",
    script="tar czf backup.tar.gz /data",
    workspace_id="backups",
)
jobs = m.cron_list()
m.cron_update(cron["id"], enabled=False)
m.cron_delete(cron["id"])"""),
    'assert cron["id"] in [one["id"] for one in jobs["cron_jobs"]]',
]

# each in a block of its own, for they declare the same names
NODE: list[str] = [
    Snippet("""\
const Mags = require('@magpiecloud/mags');
const mags = new Mags();

const result = await mags.runAndWait('echo hello world');
console.log(result.status);"""),
    Snippet("""\
const mags = new Mags({ apiToken: 'your-token' });
// or: export MAGS_API_TOKEN="your-token\""""),
    Snippet("""\
const job = await mags.run('echo hello', { workspaceId: 'myproject' });
console.log(job.requestId);"""),
    "await ended((await mags.list()).jobs[0].requestId);",
    Snippet("""\
// Or run and wait:
const result = await mags.runAndWait('echo hello', { workspaceId: 'myproject' });
console.log(result.status); // "completed\""""),
    "requestId = await persistent('myproject');",
    Snippet("""\
const status = await mags.status('eab1e214-...');
console.log(status.status); // "running\""""),
    Snippet("""\
const logs = await mags.logs('eab1e214-...');
logs.logs.forEach(l => console.log(`[${l.source}] ${l.message}`));"""),
    Snippet("""\
const resp = await mags.list({ page: 1, pageSize: 10 });
resp.jobs.forEach(j => console.log(j.requestId, j.status));"""),
    Snippet("""\
// SSH access
const ssh = await mags.enableAccess(requestId, 22);
console.log(`ssh root@${ssh.sshHost} -p ${ssh.sshPort}`);

// HTTP access
const access = await mags.enableAccess(requestId, 8080);"""),
    Snippet("await mags.updateJob(requestId, { noSleep: true });"),
    "fs.writeFileSync('script.py', 'print(1)');",
    Snippet("const fileId = await mags.uploadFile('script.py');"),
    Snippet("await mags.sync(requestId);"),
    Snippet("""\
const ws = await mags.listWorkspaces();
ws.workspaces.forEach(w => console.log(w.workspaceId));"""),
    Snippet("""\
await mags.urlAliasCreate('my-api', 'myproject');
const aliases = await mags.urlAliasList();
await mags.urlAliasDelete('my-api');"""),
    Snippet("await mags.stop('myproject'); // accepts name, workspace ID, or request ID"),
    Snippet("""\
const cron = await mags.cronCreate({
  name: 'nightly-backup',
  cronExpression: '0 0 * * *',
  script: 'tar czf backup.tar.gz /data',
  workspaceId: 'backups',
});
await mags.cronDelete(cron.id);"""),
]
# what those print, in order; REQUEST_ID stands for an id, … for anything
NODE_PRINTS = [
    "completed", "REQUEST_ID", "completed", "running", "[stdout] begun", "REQUEST_ID running", "… completed",
    "ssh root@…", "myproject",
]  # fmt: skip

SHELL: list[str] = [
    Snippet("""\
# Download
curl -L https://raw.githubusercontent.com/magpie/magpie-api-layer/main/mags/mags.sh -o mags.sh
chmod +x mags.sh"""),
    Snippet("""\
# Simple command
./mags.sh run 'echo Hello'"""),
    Snippet("""\
# With workspace
./mags.sh run -w my-project 'apk add python3'"""),
    Snippet("""\
# Persistent with URL
./mags.sh run -p --url 'python3 -m http.server 8080'"""),
    Snippet("""\
# Enable URL for existing job
./mags.sh url <job-id> 8080"""),
    Snippet("""\
# Status/logs
./mags.sh status <job-id>
./mags.sh logs <job-id>
./mags.sh list"""),
    Snippet("""\
# Global installation
mkdir -p ~/.claude/commands
curl -L https://raw.githubusercontent.com/magpie/magpie-api-layer/main/mags/skill.md \\
  -o ~/.claude/commands/mags.md"""),
    Snippet("""\
# Or project-specific
mkdir -p .claude/commands
curl -L https://raw.githubusercontent.com/magpie/magpie-api-layer/main/mags/skill.md \\
  -o .claude/commands/mags.md"""),
]

HTTP: list[str] = [
    Snippet("""\
POST /api/v1/mags-jobs
{
  "script": "apk add python3 py3-pip nodejs npm && pip install requests flask",
  "type": "inline",
  "workspace_id": "python-base"
}"""),
    Snippet("""\
POST /api/v1/mags-jobs
{
  "script": "python3 run.py",
  "type": "inline",
  "base_workspace_id": "python-base"
}"""),
    Snippet("""\
POST /api/v1/mags-jobs
{
  "name": "my-job",
  "type": "inline",
  "script": "echo Hello World",
  "workspace_id": "optional-workspace",
  "persistent": true,
  "startup_command": "npm start",
  "environment": {
    "NODE_ENV": "production"
  }
}"""),
    Snippet("GET /api/v1/mags-jobs/:id/status"),
    Snippet("GET /api/v1/mags-jobs/:id/logs"),
    Snippet("""\
POST /api/v1/mags-jobs/:id/access
# Request
{ "port": 8080 }"""),
    Snippet("""\
PATCH /api/v1/mags-jobs/:id
{ "startup_command": "npm start" }"""),
    Snippet("GET /api/v1/mags-jobs?page=1&page_size=20"),
    Snippet("GET /api/v1/mags-jobs/pool-status"),
    Snippet("POST /api/v1/mags-jobs/:id/sync"),
    Snippet("POST /api/v1/mags-jobs/:id/stop"),
    Snippet("GET /api/v1/mags-workspaces"),
    Snippet("GET /api/v1/mags-url-aliases"),
    Snippet("GET /api/v1/mags-cron"),
]

# the Jobs API: REQ_ID and YOUR_API_KEY are the reader's
JOBS_HTTP: list[str] = [
    Snippet("""\
POST /api/v1/jobs
{
  "name": "nightly-billing-rollup",
  "type": "inline",
  "script": "#!/bin/bash\\necho hello",
  "vcpus": 2,
  "memory_mb": 512,
  "environment": {"ENV": "prod"},
  "stateful": false,
  "persist": false,
  "ip_lease": false,
  "proxy_port": 8080
}"""),
    Snippet("GET /api/v1/jobs?page=1&page_size=20"),
    Snippet("GET /api/v1/jobs/:id"),
    Snippet("""\
GET /api/v1/jobs/:id/status
GET /api/v1/jobs/:id/logs"""),
]
VM_HTTP: list[str] = [
    Snippet("""\
GET /api/v1/jobs/:id/vm-info
POST /api/v1/jobs/:id/ssh
{ "command": "uname -a", "timeout_seconds": 30 }"""),
    Snippet("""\
POST /api/v1/job-templates
POST /api/v1/job-templates/:id/run"""),
]
MICROVM_HTTP: list[str] = [
    Snippet("""\
POST /api/v1/microvms
{
  "name": "ingest-edge",
  "cpu": 2,
  "memory": 2048,
  "disk": 20,
  "image": "ubuntu-22.04",
  "ssh_public_keys": ["ssh-ed25519 AAAA..."]
}"""),
    Snippet("GET /api/v1/microvms/:id/ssh-connection"),
    Snippet("GET /api/v1/microvms/:id/ssh-keys/download"),
    Snippet("POST /api/v1/microvms/:id/stop"),
    Snippet("POST /api/v1/microvms/:id/start"),
    Snippet("POST /api/v1/microvms/:id/restart"),
]
JOBS_CURL = Snippet("curl -N https://api.magpiecloud.com/api/v1/jobs/REQ_ID/logs?follow=true")
JOBS_PYTHON: list[str] = [
    Snippet("""\
from magpie import Magpie

client = Magpie(api_key="YOUR_API_KEY")"""),
    """\
import os, time
client.base_url = os.environ["MAGS_API_URL"]""",
    Snippet("""\
result = client.jobs.run(
    name="hello-world",
    script="echo 'Hello from Magpie'",
    script_type="inline",
    vcpus=2,
    memory_mb=512,
)
status = client.jobs.get_status(result["request_id"])
logs = client.jobs.get_logs(result["request_id"])"""),
    """\
client.jobs.wait_for_completion(result["request_id"], poll_interval=0.05)
assert "Hello from Magpie" in str(client.jobs.get_logs(result["request_id"]))""",
    Snippet("""\
handle = client.jobs.create_persistent_vm(
    name="dev-shell",
    script="echo ready",
    register_proxy=True,
    proxy_port=8080,
)
print(handle.request_id, handle.ip_address, handle.proxy_url)
ssh_result = client.jobs.ssh(handle.request_id, "uname -a")"""),
    """\
assert "Linux" in ssh_result.stdout, ssh_result
client.jobs.cancel(handle.request_id)""",
    Snippet("""\
template = client.templates.create(
    name="realtime-ingest",
    script="python app.py",
    script_type="inline",
    vcpus=2,
    memory_mb=1024,
)
run = client.templates.run(template.id)"""),
    """\
assert run.id and run.job_id, run
client.jobs.wait_for_completion(run.id, poll_interval=0.05)
client.templates.delete(template.id)""",
]
