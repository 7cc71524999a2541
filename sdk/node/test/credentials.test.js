'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const test = require('node:test');
const { credentials } = require('../lib/credentials');
const { fields, readable } = require('../lib/names');

function home(t, files) {
  const place = fs.mkdtempSync(path.join(os.tmpdir(), 'mags-node-'));
  t.after(() => fs.rmSync(place, { recursive: true }));
  for (const [name, values] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(path.join(place, name)), { recursive: true });
    fs.writeFileSync(path.join(place, name), typeof values === 'string' ? values : JSON.stringify(values));
  }
  return { HOME: place };
}

const OURS = { '.config/roost/config.json': { url: 'http://ours:1', token: 'kept' } };

test('options count before the environment, and slashes at the end of a URL do not', (t) => {
  const environment = { ...home(t, OURS), MAGS_API_URL: 'http://other:1', MAGS_API_TOKEN: 'other' };
  const given = { apiUrl: 'https://here:1//', apiToken: 'mine' };
  assert.deepStrictEqual(credentials(given, environment), { url: 'https://here:1', token: 'mine' });
});

test('the environment counts before what a login kept', (t) => {
  const environment = { ...home(t, OURS), MAGS_TOKEN: 'second' };
  assert.deepStrictEqual(credentials({}, environment), { url: 'http://ours:1', token: 'second' });
  environment.MAGS_API_TOKEN = 'first';
  environment.MAGS_API_URL = 'http://there:1';
  assert.deepStrictEqual(credentials({}, environment), { url: 'http://there:1', token: 'first' });
});

test('a kept token goes to its own URL and no other', (t) => {
  const environment = home(t, OURS);
  assert.deepStrictEqual(credentials({}, environment), { url: 'http://ours:1', token: 'kept' });
  assert.strictEqual(credentials({ apiUrl: 'http://OURS:1/' }, environment).token, 'kept');
  assert.throws(() => credentials({ apiUrl: 'http://theirs:1' }, environment), /no API token for http:\/\/theirs:1.*roost login/);
});

test('the file of an older mags is read; it goes to a URL that somebody chose', (t) => {
  const environment = home(t, { '.mags/config.json': { api_token: 'old' }, '.config/roost/config.json': 'damaged' });
  assert.strictEqual(credentials({ apiUrl: 'http://mine:1' }, environment).token, 'old');
  assert.throws(() => credentials({}, environment), /no API token: set MAGS_API_TOKEN/);
});

test('a token alone means the Roost of this machine', (t) => {
  assert.strictEqual(credentials({ apiToken: 'x' }, home(t, {})).url, 'http://127.0.0.1:8484');
});

test('what is no URL is refused with how to write one', (t) => {
  assert.throws(() => credentials({ apiToken: 'x', apiUrl: 'localhost:8484' }, home(t, {})), /write it like http:/);
});

test('options become fields; values stay as they are', () => {
  const environment = { someName: 'x' };
  assert.deepStrictEqual(fields({ workspaceId: 'w', diskGb: 0, no: false, environment, gone: undefined, nil: null }), {
    workspace_id: 'w', disk_gb: 0, no: false, environment,
  });
});

test('answers are what the server sent, and can be read in camelCase', () => {
  const answer = readable({ request_id: 'r', jobs: [{ workspace_id: 'w', none: null }] });
  assert.strictEqual(JSON.stringify(answer), '{"request_id":"r","jobs":[{"workspace_id":"w","none":null}]}');
  const { requestId, jobs: [{ workspaceId }] } = answer;
  assert.deepStrictEqual([requestId, workspaceId], ['r', 'w']);
});
