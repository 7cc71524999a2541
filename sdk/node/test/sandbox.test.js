'use strict';

// Against `roost up` at MAGS_API_URL: tests/e2e/test_node_sdk.py.

const assert = require('node:assert');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const test = require('node:test');
const Mags = require('..');

const mags = new Mags();
const name = `node-${process.pid}-${Date.now()}`;
const [, gatewayPort] = process.env.GATEWAY.split(':');

/** The page at a URL of the gateway, whose names below localhost not every resolver knows. */
function page(url) {
  return new Promise((resolve, reject) => {
    const request = { host: '127.0.0.1', port: gatewayPort, path: '/', headers: { Host: new URL(url).host } };
    http.get(request, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (chunk) => { text += chunk; });
      answer.on('end', () => resolve({ status: answer.statusCode, text })).on('error', reject);
    }).on('error', reject);
  });
}

async function served(url) {
  for (let tries = 0; ; tries += 1) {
    const found = await page(url);
    if (found.status === 200 || tries === 100) return found;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test('a script runs and its output, exit status and files are true', async (t) => {
  const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'mags-node-')), 'script.py');
  t.after(() => fs.rmSync(path.dirname(file), { recursive: true }));
  fs.writeFileSync(file, 'import os, sys\nprint(os.environ["NAME"])\nsys.exit(4)\n');
  const fileIds = [await mags.uploadFile(file)];
  const { requestId } = await mags.run('true', { name: `${name}-run` });
  const result = await mags.runAndWait('python3 script.py', { fileIds, environment: { NAME: 'it is me' } });
  assert.deepStrictEqual([result.status, result.exitCode, result.logs[0].message], ['error', 4, 'it is me']);
  assert.strictEqual((await mags.runAndWait('echo hello world')).status, 'completed');
  assert.strictEqual((await mags.status(`${name}-run`)).requestId, requestId);
});

test('a sandbox that stays is entered, has a URL and an alias, and is stopped', async (t) => {
  const { requestId } = await mags.new(name);
  t.after(() => mags.stop(requestId));
  const ran = await mags.exec(name, "echo out; echo err >&2; exit 7", { timeout: 20_000 });
  assert.deepStrictEqual([ran.exitCode, ran.output, ran.stderr], [7, 'out\n', 'err\n']);
  const late = await mags.exec(name, 'sleep 30', { timeout: 100 });
  assert.strictEqual(late.timedOut, true);
  await mags.exec(name, 'mkdir -p /srv/www && echo by node > /srv/www/index.html');
  const serve = 'cd /srv/www && setsid python3 -m http.server 8080 >/dev/null 2>&1 </dev/null &';
  const listens = 'until curl -fs http://127.0.0.1:8080/ >/dev/null; do sleep 0.1; done'; // or exec would end it
  assert.strictEqual((await mags.exec(name, `${serve} ${listens}`)).exitCode, 0);
  const { url } = await mags.url(name, 8080);
  assert.deepStrictEqual(await served(url), { status: 200, text: 'by node\n' });
  const alias = await mags.urlAliasCreate(name, name);
  assert.deepStrictEqual(await served(alias.url), { status: 200, text: 'by node\n' });
  await mags.urlAliasDelete(name);
  const ssh = await mags.enableAccess(name, 22);
  assert.match(ssh.sshPrivateKey, /OPENSSH PRIVATE KEY/);
});

test('a schedule is kept until it is deleted', async () => {
  const cron = await mags.cronCreate({ name, cronExpression: '0 0 * * *', script: 'true' });
  assert((await mags.cronList()).cron_jobs.some((one) => one.id === cron.id));
  await mags.cronDelete(cron.id);
});

test('a browser is started, used again by its name, and told where it is missing', async (t) => {
  const profile = `${name}-browser`;
  await mags.runAndWait(process.env.DEVTOOLS, { workspaceId: profile }); // installs what stands in for Chromium there
  const told = await mags.browser({ name: profile, rootfsType: 'standard', timeout: 60_000 });
  t.after(() => mags.stop(told.requestId));
  const { host } = new URL(told.cdpHttpUrl);
  assert.strictEqual(told.cdpUrl, `ws://${host}`);
  assert.strictEqual(told.wsEndpoint, `ws://${host}/devtools/browser/7`);
  assert.deepStrictEqual(await mags.browser({ name: profile, rootfsType: 'standard' }), told);
  await assert.rejects(mags.browser({ rootfsType: 'standard' }), /there is no chromium in this image/);
});
