'use strict';

// Chromium in a sandbox. Its DevTools answer no other name than localhost, as which the gateway asks them; what they say
// of their own address is of no use to others, so the host of the sandbox's URL takes its place.

const http = require('node:http');
const https = require('node:https');

const PORT = 9222; // DevTools'
const MEMORY_MB = 2048;
// Chromium's own sandbox needs namespaces, which Roost's denies; Roost's is the boundary.
const SCRIPT = `\
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo 'there is no chromium in this image' >&2
    exit 127
}
rm -f /root/.chromium/Singleton*
exec "$chromium" --headless=new --no-sandbox --disable-dev-shm-usage --disable-gpu --no-first-run \\
    --remote-debugging-port=9222 --user-data-dir=/root/.chromium about:blank
`;

/** Where programs drive it: `cdpUrl` and `cdpHttpUrl` find the browser by themselves, `wsEndpoint` is its own address. */
function endpoints(requestId, url, version) {
  const { protocol, host } = new URL(url);
  const sockets = protocol === 'https:' ? 'wss:' : 'ws:';
  const { pathname } = new URL(version.webSocketDebuggerUrl);
  const wsEndpoint = `${sockets}//${host}${pathname}`;
  return { requestId, cdpUrl: `${sockets}//${host}`, cdpHttpUrl: `${protocol}//${host}`, wsEndpoint };
}

/** What DevTools say of themselves; rejects while they do not answer. */
function version(url, timeout) {
  const { protocol, hostname, port, host } = new URL(url);
  // names below localhost are this machine's (RFC 6761), though not every resolver knows
  const connected = hostname.endsWith('.localhost') ? '127.0.0.1' : hostname;
  const request = { host: connected, servername: hostname, port, path: '/json/version', headers: { Host: host }, timeout };
  return new Promise((resolve, reject) => {
    const asked = (protocol === 'https:' ? https : http).get(request, (answer) => {
      const chunks = [];
      answer.on('data', (chunk) => chunks.push(chunk));
      answer.on('error', reject);
      answer.on('end', () => {
        try {
          if (answer.statusCode !== 200) throw new Error(`DevTools answered ${answer.statusCode}`);
          resolve(JSON.parse(Buffer.concat(chunks).toString()));
        } catch (error) {
          reject(error);
        }
      });
    });
    asked.on('timeout', () => asked.destroy(new Error('DevTools did not answer in time')));
    asked.on('error', reject);
  });
}

module.exports = { MEMORY_MB, PORT, SCRIPT, endpoints, version };
