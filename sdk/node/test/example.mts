// Never run: `tsc` checks that what the documents show has types, and that mistakes have none.

import Mags, { MagsError } from '@magpiecloud/mags';

const mags = new Mags({ apiToken: 'your-token', apiUrl: 'http://127.0.0.1:8484', timeout: 10_000 });

const result = await mags.runAndWait('echo hello', { workspaceId: 'myproject', timeout: 5_000 });
const said: string[] = result.logs.map((line) => `[${line.source}] ${line.message}`);
const both: [number, number] = [result.exit_code, result.exitCode];

const job = await mags.run('echo hello', { environment: { A: '1' }, fileIds: await mags.uploadFiles(['a', 'b']) });
const ids: [string, string] = [job.request_id, job.requestId];

const ssh = await mags.enableAccess(job.requestId, 22);
const login: string = `ssh root@${ssh.sshHost} -p ${ssh.ssh_port}`;
const url: string = (await mags.url('myproject')).url;

const page = await mags.list({ page: 1, pageSize: 10 });
const listed: string[] = page.jobs.map((one) => `${one.requestId} ${one.status} ${one.workspaceId ?? ''}`);
const found = await mags.findJob('myproject');
const asleep: boolean = found !== null && found.status === 'sleeping';

const cron = await mags.cronCreate({ name: 'nightly', cronExpression: '0 0 * * *', script: 'true' });
const next: string | null = (await mags.cronUpdate(cron.id, { enabled: false })).nextRunAt;
const names: string[] = (await mags.listWorkspaces()).workspaces.map((one) => one.workspaceId);
const seconds: number = (await mags.usage({ windowDays: 7 })).vmSeconds;
const ws: string = (await mags.browser()).wsEndpoint;
const output: string = (await mags.exec('myproject', 'uname', { timeout: 1_000 })).output;

try {
  await mags.stop('nothing');
} catch (error) {
  if (error instanceof MagsError && error.status === 404) console.log(error.message);
}

// @ts-expect-error: a script is text
await mags.run(42);
// @ts-expect-error: options are camelCase
await mags.run('true', { workspace_id: 'x' });
// @ts-expect-error: there is no such field
result.exitcode;

export { asleep, both, ids, listed, login, names, next, output, said, seconds, url, ws };
