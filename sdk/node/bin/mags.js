#!/usr/bin/env node
'use strict';
// The command `mags`: the client that is one file, which `npm pack` puts beside this one, run by the Python that is
// here. In a checkout of Roost it is the checkout's own.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const PACKED = path.join(__dirname, 'mags.pyz');
const CHECKOUT = path.join(__dirname, '..', '..', '..', '.venv', 'bin', 'mags');
const OUR_FAILURE = 125; // as of the command itself: not what a script ended with

function command() {
  if (fs.existsSync(PACKED)) return ['python3', PACKED];
  if (fs.existsSync(CHECKOUT)) return [CHECKOUT];
  return fail('this package was not packed whole; make it with `npm pack` in a checkout of Roost after `make setup`');
}

function fail(text) {
  console.error(`mags: ${text}`);
  process.exit(OUR_FAILURE);
}

const [program, ...words] = command();
const child = spawn(program, [...words, ...process.argv.slice(2)], { stdio: 'inherit', argv0: program });
child.on('error', (error) => {
  fail(error.code === 'ENOENT' ? `it needs Python 3.11 or newer, and there is no ${program} here` : error.message);
});
// a terminal tells both of us; what is sent to this process alone is handed on
process.on('SIGINT', () => {});
for (const signal of ['SIGTERM', 'SIGHUP', 'SIGQUIT']) process.on(signal, () => child.kill(signal));
child.on('exit', (code, signal) => process.exit(signal ? 128 + os.constants.signals[signal] : code));
