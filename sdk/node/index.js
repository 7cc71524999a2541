'use strict';

const { Mags } = require('./lib/mags');
const { MagsError } = require('./lib/errors');

module.exports = Mags;
module.exports.default = Mags;
module.exports.Mags = Mags;
module.exports.MagsError = MagsError;
