'use strict';

/**
 * What went wrong, in words that name the cure. `status` is the HTTP status of the server's answer; undefined where
 * there was none: a server that is not there, a wait that took too long, an option that cannot be.
 */
class MagsError extends Error {
  constructor(message, status, options) {
    super(message, options);
    this.name = 'MagsError';
    this.status = status;
    this.statusCode = status;
  }
}

module.exports = { MagsError };
