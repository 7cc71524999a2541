'use strict';

// The client: a method for each call of the API, and the few that are several calls (runAndWait, new, resize, browser).

const fs = require('node:fs/promises');
const path = require('node:path');
const browser = require('./browser');
const { credentials } = require('./credentials');
const { MagsError } = require('./errors');
const { Http } = require('./http');
const { camel, fields } = require('./names');

const TIMEOUT = 30_000; // ms
const WAIT = 60_000; // ms that runAndWait and new wait
const SAVE = 600_000; // ms that saving a large workspace may take
const WAKE = 100_000; // ms; the server gives a sleeping sandbox 90 s to wake
const BROWSER = 120_000; // ms
const FINAL = ['completed', 'error'];
const FIRST_LOOK = 25; // ms; each next look comes a quarter later, up to the interval asked for
const LOOK = 1_000; // ms

// what a sandbox of another size takes over from the old one; the API does not show its environment
const KEPT = ['name', 'workspace_id', 'rootfs_type', 'vcpus', 'memory_mb', 'no_sleep', 'startup_command', 'idle_minutes'];

class Mags {
  /**
   * `apiToken` and `apiUrl` default to MAGS_API_TOKEN (or MAGS_TOKEN) and MAGS_API_URL, then to what `roost login` kept;
   * `timeout`: ms for one answer.
   */
  constructor(options = {}) {
    const { apiToken, apiUrl, timeout = TIMEOUT, ...others } = options;
    refuse(others, 'give apiToken, apiUrl or timeout');
    this._http = new Http(credentials({ apiToken, apiUrl }), milliseconds('timeout', timeout));
  }

  get apiUrl() {
    return this._http.url;
  }

  async run(script, options = {}) {
    return this._http.call('POST', '/mags-jobs', submission(script, options));
  }

  /** Resolves when the job has ended, well or not; rejects after `timeout` ms, and the job goes on. */
  async runAndWait(script, options = {}) {
    const { timeout = WAIT, pollInterval = LOOK, ...wanted } = options;
    const { request_id: id } = await this.run(script, wanted);
    const ended = await this._until(id, ({ status }) => FINAL.includes(status), timeout, pollInterval);
    const { logs } = await this.logs(id);
    const { status, exit_code: exitCode = 0, script_duration_ms: durationMs = 0 } = ended;
    return both({ request_id: id, status, exit_code: exitCode, duration_ms: durationMs, logs });
  }

  async status(nameOrId) {
    return this._http.call('GET', `${job(nameOrId)}/status`);
  }

  async logs(nameOrId) {
    return this._http.call('GET', `${job(nameOrId)}/logs`);
  }

  async list({ page = 1, pageSize = 20, ...others } = {}) {
    refuse(others, 'give page or pageSize');
    return this._http.call('GET', `/mags-jobs?${new URLSearchParams({ page, page_size: pageSize })}`);
  }

  async listJobs(options) {
    return this.list(options);
  }

  async updateJob(nameOrId, changes = {}) {
    return this._http.call('PATCH', job(nameOrId), fields(changes));
  }

  /** Port 22: host, port and private key for SSH; any other: a public URL. */
  async enableAccess(nameOrId, port = 8080) {
    return this._http.call('POST', `${job(nameOrId)}/access`, { port }, Math.max(this._http.timeout, WAKE));
  }

  async url(nameOrId, port = 8080) {
    return this.enableAccess(nameOrId, port);
  }

  async stop(nameOrId) {
    return this._http.call('POST', `${job(nameOrId)}/stop`);
  }

  async sync(nameOrId) {
    return this._http.call('POST', `${job(nameOrId)}/sync`);
  }

  /** `timeout`: ms that the command may take, 30,000 unless said. `output` is what it wrote to standard output. */
  async exec(nameOrId, command, { timeout = TIMEOUT, ...others } = {}) {
    refuse(others, 'give timeout');
    const limit = milliseconds('timeout', timeout);
    const ran = await this._http.call('POST', `${job(nameOrId)}/exec`, { command, timeout: limit / 1000 }, limit + WAKE);
    return both({ ...ran, output: ran.stdout });
  }

  /** A sandbox that stays, in the workspace `name`; resolves when it runs. With `persistent` its files go to the store. */
  async new(name, options = {}) {
    const { timeout = WAIT, pollInterval = LOOK, persistent = false, ...wanted } = options;
    const kept = { ...wanted, workspaceId: name, persistent: true, noSync: persistent ? undefined : true };
    const { request_id: id } = await this.run(kept.startupCommand || 'sleep infinity', kept);
    return this._started(id, timeout, pollInterval);
  }

  /** The same files on a disk of another size: saved, stopped and made anew, as another job of the same workspace. */
  async resize(nameOrId, diskGb, { timeout = WAIT, pollInterval = LOOK, ...others } = {}) {
    refuse(others, 'give timeout or pollInterval');
    const old = await this._http.call('GET', job(nameOrId));
    if (!old.workspace_id) throw new MagsError(`job '${old.name}' has no workspace, so its files would be lost`);
    if (!FINAL.includes(old.status)) {
      await this._http.call('POST', `${job(old.request_id)}/stop`, undefined, WAKE);
      await this._until(old.request_id, ({ status }) => FINAL.includes(status), SAVE, pollInterval);
    }
    const { request_id: id } = await this._http.call('POST', '/mags-jobs', resized(old, diskGb));
    return this._started(id, timeout, pollInterval);
  }

  /** The job of that name, workspace or id: one that runs or sleeps before others, then the newest. null: none. */
  async findJob(nameOrId) {
    try {
      return await this.status(nameOrId);
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }

  async usage({ windowDays = 30, ...others } = {}) {
    refuse(others, 'give windowDays');
    return this._http.call('GET', `/mags-jobs/usage?${new URLSearchParams({ window_days: windowDays })}`);
  }

  /** The id of the upload, for `fileIds` of a job. */
  async uploadFile(file) {
    const form = new FormData();
    let content;
    try {
      content = await fs.readFile(file);
    } catch (error) {
      throw new MagsError(`cannot read ${file}: ${error.message}`, undefined, { cause: error });
    }
    form.append('file', new Blob([content]), path.basename(file));
    const { file_id: id } = await this._http.call('POST', '/mags-files', form, Math.max(this._http.timeout, SAVE));
    return id;
  }

  async uploadFiles(files) {
    const ids = [];
    for (const file of files) ids.push(await this.uploadFile(file));
    return ids;
  }

  async listWorkspaces() {
    return this._http.call('GET', '/mags-workspaces');
  }

  async deleteWorkspace(workspaceId) {
    return this._http.call('DELETE', `/mags-workspaces/${segment('workspaceId', workspaceId)}`);
  }

  async urlAliasCreate(subdomain, workspaceId, domain) {
    return this._http.call('POST', '/mags-url-aliases', fields({ subdomain, workspaceId, domain }));
  }

  async urlAliasList() {
    return this._http.call('GET', '/mags-url-aliases');
  }

  async urlAliasDelete(subdomain) {
    return this._http.call('DELETE', `/mags-url-aliases/${segment('subdomain', subdomain)}`);
  }

  async cronCreate(options) {
    return this._http.call('POST', '/mags-cron', fields(options));
  }

  async cronList() {
    return this._http.call('GET', '/mags-cron');
  }

  async cronGet(id) {
    return this._http.call('GET', `/mags-cron/${segment('id', id)}`);
  }

  async cronUpdate(id, changes) {
    return this._http.call('PATCH', `/mags-cron/${segment('id', id)}`, fields(changes));
  }

  async cronDelete(id) {
    return this._http.call('DELETE', `/mags-cron/${segment('id', id)}`);
  }

  /**
   * Chromium in a sandbox of the image `browser` (`roost image build browser -p chromium` makes it once), and where
   * programs drive it; `stop(requestId)` ends it. With `name` its profile is kept, and the one that is there is used.
   */
  async browser({ name, timeout = BROWSER, rootfsType = 'browser', memoryMb = browser.MEMORY_MB, ...others } = {}) {
    refuse(others, 'give name, timeout, rootfsType or memoryMb');
    const deadline = Date.now() + milliseconds('timeout', timeout);
    const left = () => Math.max(deadline - Date.now(), 1);
    const there = name === undefined ? null : await this.findJob(name);
    const id = there && !FINAL.includes(there.status) ? there.request_id : await this._chromium(name, rootfsType, memoryMb);
    await this._started(id, left(), LOOK);
    const { url } = await this.enableAccess(id, browser.PORT);
    for (;;) {
      try {
        return browser.endpoints(id, url, await browser.version(url, left()));
      } catch (error) {
        const { status, exit_code: exitCode } = await this.status(id);
        if (FINAL.includes(status) || exitCode !== undefined) throw await this._ended(id);
        if (Date.now() >= deadline) throw new MagsError(`no browser answered at ${url} in ${timeout} ms: ${error.message}`);
      }
      await pause(200);
    }
  }

  async _chromium(name, rootfsType, memoryMb) {
    // it wakes from cold by the same script, whose profile is then on its disk
    const wanted = { persistent: true, rootfsType, memoryMb, startupCommand: browser.SCRIPT, name, workspaceId: name };
    return (await this.run(browser.SCRIPT, wanted)).request_id;
  }

  /** Why there is no browser; its sandbox is not left behind. */
  async _ended(id) {
    const { logs } = await this.logs(id);
    await this.stop(id);
    return new MagsError(`the browser ended: ${logs.filter((line) => line.source !== 'system').at(-1)?.message ?? 'it said nothing'}`);
  }

  async _started(id, timeout, interval) {
    const runs = ({ status, vm_id: vmId }) => status === 'sleeping' || (status === 'running' && vmId);
    const found = await this._until(id, (one) => runs(one) || FINAL.includes(one.status), timeout, interval);
    if (FINAL.includes(found.status)) {
      throw new MagsError(`job ${id} ended before it ran (${found.error || found.status}); its logs say why`);
    }
    return both({ request_id: id, status: 'running' });
  }

  /** The job's status once it is as wanted. */
  async _until(id, wanted, timeout, interval) {
    const deadline = Date.now() + milliseconds('timeout', timeout);
    const longest = milliseconds('pollInterval', interval);
    for (let wait = FIRST_LOOK; ; wait = Math.min(wait * 1.25, longest)) {
      const found = await this.status(id);
      if (wanted(found)) return found;
      if (Date.now() >= deadline) {
        throw new MagsError(`job ${id} is ${found.status} after ${timeout} ms, and goes on; give a longer timeout`);
      }
      await pause(Math.min(wait, longest, Math.max(deadline - Date.now(), 1)));
    }
  }
}

/** The body of a submission. Options that are not known here become fields, which the server takes or refuses. */
function submission(script, { timeout, memGb, ...options }) {
  if (timeout !== undefined) throw new MagsError('timeout: a script may take timeoutSeconds; give that');
  if (memGb !== undefined) options.memoryMb = memGb * 1024;
  return { type: 'inline', ...fields(options), script };
}

function resized(old, diskGb) {
  const script = old.startup_command || 'sleep infinity';
  const body = { script, type: 'inline', persistent: true, disk_gb: diskGb };
  for (const name of KEPT) if (old[name]) body[name] = old[name];
  if (old.no_sync || !old.persistent) body.no_sync = true; // kept on its node alone, as before
  return body;
}

function job(nameOrId) {
  return `/mags-jobs/${segment('job', nameOrId)}`;
}

function segment(what, text) {
  if (typeof text !== 'string' || text === '') throw new MagsError(`${what}: '${text}' is none; give a name or an id`);
  return encodeURIComponent(text);
}

function milliseconds(what, value) {
  if (!(Number.isFinite(value) && value > 0)) throw new MagsError(`${what}: ${value} is none; give milliseconds`);
  return value;
}

function refuse(others, cure) {
  const [name] = Object.keys(others);
  if (name !== undefined) throw new MagsError(`${name} is no option; ${cure}`);
}

/** An answer that is made here, with both ways to read it. Here the camelCase names are its own, too. */
function both(answer) {
  for (const [name, held] of Object.entries(answer)) answer[camel(name)] = held;
  return answer;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

module.exports = { Mags };
