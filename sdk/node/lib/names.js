'use strict';

// The server speaks snake_case; this package's options are camelCase, and its answers can be read either way.

const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const camel = (name) => name.replace(/(?<=[a-z0-9])_([a-z0-9])/g, (_, letter) => letter.toUpperCase());

/** Options as fields of a body. What is undefined or null is left out; values are passed on as they are. */
function fields(options) {
  const body = {};
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined && value !== null) body[snake(name)] = value;
  }
  return body;
}

/**
 * An answer whose keys can be read in camelCase, too. The other names are not enumerable: what is printed, spread or
 * turned into JSON is exactly what the server sent.
 */
function readable(value) {
  if (Array.isArray(value)) return value.map(readable);
  if (value === null || typeof value !== 'object') return value;
  const answer = {};
  for (const [name, held] of Object.entries(value)) answer[name] = readable(held);
  for (const name of Object.keys(value)) {
    const other = camel(name);
    if (Object.hasOwn(answer, other)) continue;
    Object.defineProperty(answer, other, {
      configurable: true,
      get() { return this[name]; },
      set(held) { this[name] = held; },
    });
  }
  return answer;
}

module.exports = { camel, fields, readable, snake };
