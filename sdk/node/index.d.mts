import Mags = require('./index.js');

export default Mags;
export { Mags };
export import MagsError = Mags.MagsError;
