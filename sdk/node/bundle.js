// `npm pack` runs this: writes bin/mags.pyz, the client that is one file, with the checkout's own Python.
'use strict';

const { spawnSync } = require('node:child_process');
const path = require('node:path');

const python = process.env.ROOST_PYTHON || path.join(__dirname, '..', '..', '.venv', 'bin', 'python');
const target = path.join(__dirname, 'bin', 'mags.pyz');
const done = spawnSync(python, ['-m', 'roost.handouts.client', target], { stdio: 'inherit' });
if (done.status !== 0) {
  console.error(`mags.pyz could not be made by ${python} (${done.error?.message ?? done.status}); run \`make setup\` first`);
  process.exit(1);
}
