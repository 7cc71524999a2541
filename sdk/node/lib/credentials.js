'use strict';

// Which server, and who one is there: what the constructor was given, else the environment, else what a login left.
// The same order and files as those of the `roost` command.

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { MagsError } = require('./errors');

const LOCAL = 'http://127.0.0.1:8484'; // where `roost up` listens
const URLS = ['MAGS_API_URL', 'ROOST_URL'];
const TOKENS = ['MAGS_API_TOKEN', 'MAGS_TOKEN', 'ROOST_TOKEN'];
const URL_KEYS = ['url', 'api_url', 'apiUrl', 'MAGS_API_URL'];
const TOKEN_KEYS = ['token', 'api_token', 'apiToken', 'MAGS_API_TOKEN'];

/** `{url, token}`, the URL without a slash at its end. A kept token goes to the URL it was kept for and no other. */
function credentials({ apiUrl, apiToken } = {}, environment = process.env) {
  const chosen = apiUrl || first(environment, URLS);
  const token = apiToken || first(environment, TOKENS);
  const logins = kept(environment);
  if (token) return checked(chosen || logins.find((one) => one.url)?.url || LOCAL, token);
  const login = chosen
    ? logins.find((one) => same(one.url, chosen)) || logins.find((one) => !one.url)
    : logins.find((one) => one.url);
  if (login) return checked(chosen || login.url, login.token);
  throw new MagsError(
    `no API token${chosen ? ` for ${chosen}` : ''}: set MAGS_API_TOKEN, pass { apiToken }, or use \`roost login\``,
  );
}

function checked(url, token) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    parsed = { protocol: '' };
  }
  if (parsed.protocol !== 'http:' && parsed.protocol !== 'https:') {
    throw new MagsError(`'${url}' is no URL; write it like ${LOCAL}`);
  }
  return { url: url.replace(/\/+$/, ''), token };
}

/** What `roost login` and an older `mags login` left, the preferred first; a file that cannot be read is none. */
function kept(environment) {
  const home = environment.HOME || os.homedir();
  const configured = environment.XDG_CONFIG_HOME || '';
  const ours = path.isAbsolute(configured) ? configured : path.join(home, '.config');
  const files = [path.join(ours, 'roost', 'config.json'), path.join(home, '.mags', 'config.json')];
  return files.map(login).filter((one) => one && one.token);
}

function login(file) {
  try {
    const values = JSON.parse(fs.readFileSync(file, 'utf8'));
    return { url: first(values, URL_KEYS), token: first(values, TOKEN_KEYS) };
  } catch {
    return undefined;
  }
}

function first(values, names) {
  const name = names.find((one) => typeof values[one] === 'string' && values[one] !== '');
  return name === undefined ? undefined : values[name];
}

function same(one, other) {
  const plain = (url) => url.replace(/\/+$/, '').toLowerCase();
  return one !== undefined && plain(one) === plain(other);
}

module.exports = { credentials };
