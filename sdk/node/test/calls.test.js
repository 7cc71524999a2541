'use strict';

// Against a server at MAGS_API_URL whose sandboxes are told by their scripts what to do: tests/sdk/test_node.py.

const assert = require('node:assert');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const test = require('node:test');
const Mags = require('..');

const mags = new Mags();
const { MagsError } = Mags;
const refused = (status, words) => (error) => {
  assert(error instanceof MagsError && error instanceof Error, error);
  assert.strictEqual(error.status, status);
  assert.match(error.message, words);
  return true;
};

test('the package is a class for require and for import', async () => {
  const esm = await import('../index.mjs');
  assert.strictEqual(Mags, Mags.default);
  assert.strictEqual(esm.default, Mags);
  assert.strictEqual(esm.MagsError, MagsError);
});

test('a script is submitted, waited for and told', async () => {
  const job = await mags.run('echo hello', { name: 'first', environment: { SOME_KEY: 'v' }, timeoutSeconds: 9 });
  assert.strictEqual(job.requestId, job.request_id);
  assert.strictEqual(job.status, 'accepted');
  assert.deepStrictEqual(Object.keys(job).sort(), ['message', 'request_id', 'status']);

  const result = await mags.runAndWait('echo hello', { pollInterval: 20 });
  assert.strictEqual(result.status, 'completed');
  assert.deepStrictEqual([result.exitCode, result.exit_code, result.durationMs], [0, 0, result.duration_ms]);
  assert.deepStrictEqual(result.logs.map((line) => `[${line.source}] ${line.message}`), ['[stdout] hello']);
  assert.deepStrictEqual((await mags.logs(result.requestId)).logs, result.logs);
});

test('a script that fails is a result, not an exception', async () => {
  const { status, exitCode } = await mags.runAndWait('exit 3');
  assert.deepStrictEqual([status, exitCode], ['error', 3]);
});

test('a wait that is too short says so, and the job goes on', async () => {
  await assert.rejects(mags.runAndWait('sleep 60', { name: 'slow', timeout: 50 }), refused(undefined, /slow|longer timeout/));
  assert.strictEqual((await mags.status('slow')).status, 'running');
  assert.strictEqual((await mags.stop('slow')).success, true);
});

test('every option arrives', async () => {
  const wanted = {
    workspaceId: 'options', persistent: true, noSync: true, noSleep: true, startupCommand: 'true', diskGb: 3,
    rootfsType: 'standard', memGb: 2, vcpus: 0.5, idleMinutes: 5,
  };
  const { requestId } = await mags.run('sleep 60', wanted);
  const record = await mags.updateJob(requestId, { noSleep: false, startupCommand: 'date' });
  assert.deepStrictEqual(
    [record.workspaceId, record.diskGb, record.memoryMb, record.vcpus, record.idleMinutes, record.startupCommand],
    ['options', 3, 2048, 0.5, 5, 'date'],
  );
  assert.strictEqual(record.noSleep, undefined);
  await mags.stop('options');
  await mags.runAndWait('true', { baseWorkspaceId: 'options' });
});

test('options that contradict each other, or that nobody knows, are refused with a reason', async () => {
  await assert.rejects(mags.run('true', { ephemeral: true, persistent: true }), refused(400, /ephemeral/));
  await assert.rejects(mags.run('true', { noSleep: true }), refused(400, /persistent/));
  await assert.rejects(mags.run('true', { colour: 'red' }), refused(400, /colour/));
  await assert.rejects(mags.run('true', { timeout: 5 }), refused(undefined, /timeoutSeconds/));
  await assert.rejects(mags.list({ size: 3 }), refused(undefined, /size is no option; give page/));
  assert.throws(() => new Mags({ token: 'x' }), refused(undefined, /token is no option/));
  await assert.rejects(mags.status(''), refused(undefined, /give a name or an id/));
});

test('jobs are listed, the newest first, and found by name, workspace and id', async () => {
  const { requestId } = await mags.run('sleep 60', { name: 'named one', workspaceId: 'ws-none' });
  const page = await mags.list({ page: 1, pageSize: 1 });
  assert.deepStrictEqual([page.jobs[0].requestId, page.pageSize, page.page_size], [requestId, 1, 1]);
  assert.strictEqual((await mags.listJobs()).page, 1);
  for (const name of ['named one', 'ws-none', requestId]) {
    assert.strictEqual((await mags.findJob(name)).request_id, requestId);
  }
  assert.strictEqual(await mags.findJob('nobody'), null);
  await mags.stop('named one');
});

test('a job that is not there is an error with status 404', async () => {
  for (const method of ['status', 'logs', 'stop', 'sync', 'url', 'updateJob', 'enableAccess']) {
    await assert.rejects(mags[method]('no'), refused(404, /no job has the id, name or workspace 'no'/));
  }
});

test('a sandbox that stays has a URL, an alias and SSH, is saved and gets a larger disk', async () => {
  const made = await mags.new('stays', { persistent: true });
  assert.deepStrictEqual([made.status, made.requestId], ['running', made.request_id]);
  assert.strictEqual((await mags.status('stays')).persistent, true);
  const url = await mags.url('stays', 3000);
  assert.deepStrictEqual([url.port, url.accessType, new URL(url.url).hostname.split('.')[0]], [3000, 'http_proxy', url.subdomain]);
  assert.strictEqual((await mags.sync('stays')).success, true);

  const alias = await mags.urlAliasCreate('my-stays', 'stays');
  assert.strictEqual(alias.workspaceId, 'stays');
  await assert.rejects(mags.urlAliasCreate('my-stays', 'stays'), refused(409, /exist|already|taken/));
  assert.deepStrictEqual((await mags.urlAliasList()).aliases.map((one) => one.subdomain), ['my-stays']);
  assert.strictEqual((await mags.urlAliasDelete('my-stays')).success, true);

  const larger = await mags.resize('stays', 5);
  assert.notStrictEqual(larger.requestId, made.requestId);
  const { jobs } = await mags.list();
  assert.strictEqual(jobs[0].request_id, larger.request_id);

  await assert.rejects(mags.deleteWorkspace('stays'), refused(409, /1 active job/));
  await mags.stop('stays');
  const { workspaces } = await mags.listWorkspaces();
  assert(workspaces.some((one) => one.workspaceId === 'stays' && one.jobCount === 2));
  assert.match((await mags.deleteWorkspace('stays')).message, /'stays' deleted/);
});

test('files are uploaded and arrive by their ids', async (t) => {
  const place = fs.mkdtempSync(path.join(os.tmpdir(), 'mags-node-'));
  t.after(() => fs.rmSync(place, { recursive: true }));
  const files = ['script.py', 'däta "1".csv'].map((name) => path.join(place, name));
  for (const file of files) fs.writeFileSync(file, 'content');
  const [first, ...rest] = [await mags.uploadFile(files[0]), ...(await mags.uploadFiles(files))];
  assert.strictEqual(new Set([first, ...rest]).size, 3);
  assert.strictEqual((await mags.runAndWait('ls', { fileIds: rest })).logs[0].message, 'däta "1".csv script.py');
  await assert.rejects(mags.uploadFile('/no/such'), refused(undefined, /cannot read \/no\/such/));
});

test('a schedule from its making to its end', async () => {
  const cron = await mags.cronCreate({
    name: 'nightly-backup', cronExpression: '0 0 * * *', script: 'tar czf backup.tar.gz /data', workspaceId: 'backups',
    environment: { KEY: 'v' }, persistent: false,
  });
  assert.deepStrictEqual([cron.cronExpression, cron.environmentNames], ['0 0 * * *', ['KEY']]);
  assert.deepStrictEqual((await mags.cronList()).cronJobs.map((one) => one.id), [cron.id]);
  assert.strictEqual((await mags.cronUpdate(cron.id, { enabled: false })).enabled, false);
  assert.strictEqual((await mags.cronGet(cron.id)).nextRunAt ?? null, null);
  assert.strictEqual((await mags.cronDelete(cron.id)).success, true);
  await assert.rejects(mags.cronGet(cron.id), refused(404, /cron/));
  await assert.rejects(mags.cronCreate({ name: 'x', cronExpression: 'hourly', script: 'true' }), refused(400, /five fields/));
});

test('usage is told', async () => {
  const usage = await mags.usage({ windowDays: 7 });
  assert.strictEqual(usage.window_days, 7);
  assert(usage.totalJobs > 0);
});

test('a wrong token is an error with status 401', async () => {
  await assert.rejects(new Mags({ apiToken: 'wrong' }).list(), refused(401, /./));
});

test('a server that is not there, and one that does not answer, are said with a cure', async (t) => {
  await assert.rejects(new Mags({ apiUrl: 'http://127.0.0.1:9' }).list(), refused(undefined, /cannot reach .*roost up/));
  const silent = http.createServer(() => {});
  await new Promise((ready) => silent.listen(0, '127.0.0.1', ready));
  t.after(() => { silent.closeAllConnections(); silent.close(); });
  const apiUrl = `http://127.0.0.1:${silent.address().port}`;
  await assert.rejects(new Mags({ apiUrl, timeout: 50 }).list(), refused(undefined, /did not answer within 50 ms/));
});

test('without an image that has Chromium, browser says which is missing', async () => {
  await assert.rejects(mags.browser({ rootfsType: 'no-browser' }), refused(400, /no-browser/));
});
