'use strict';

const { MagsError } = require('./errors');
const { readable } = require('./names');

/** One server and token. */
class Http {
  constructor({ url, token }, timeout) {
    this.url = url;
    this.token = token;
    this.timeout = timeout; // ms, for one answer
  }

  /**
   * The decoded answer. `body` is sent as JSON, a FormData as it is. Rejects with a MagsError that carries the server's
   * own words, or says how to reach it.
   */
  async call(method, path, body, timeout = this.timeout) {
    const form = body instanceof FormData;
    const headers = { Authorization: `Bearer ${this.token}`, 'User-Agent': 'roost-node' };
    if (!form) headers['Content-Type'] = 'application/json';
    const signal = AbortSignal.timeout(timeout);
    const request = { method, headers, signal, body: form || body === undefined ? body : JSON.stringify(body) };
    let answer, text;
    try {
      answer = await fetch(`${this.url}/api/v1${path}`, request);
      text = await answer.text();
    } catch (error) {
      throw this.unreachable(error, timeout);
    }
    if (!answer.ok) throw new MagsError(refusal(answer, text), answer.status);
    return readable(decoded(text, answer));
  }

  unreachable(error, timeout) {
    const late = error.name === 'TimeoutError';
    const reason = late ? `it did not answer within ${timeout} ms` : (error.cause?.message || error.message);
    return new MagsError(`cannot reach ${this.url} (${reason}); is Roost running? \`roost up\` starts it`, undefined, {
      cause: error,
    });
  }
}

function decoded(text, answer) {
  if (text === '') return {};
  try {
    return JSON.parse(text);
  } catch {
    throw new MagsError(`the answer is no JSON: ${text.slice(0, 200)}; is MAGS_API_URL that of an API?`, answer.status);
  }
}

function refusal(answer, text) {
  try {
    const { error, message } = JSON.parse(text);
    return error || message || text;
  } catch {
    return text || `the server answered ${answer.status} ${answer.statusText}`;
  }
}

module.exports = { Http };
