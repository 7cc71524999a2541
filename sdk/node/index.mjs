import Mags from './index.js';

export default Mags;
export { Mags };
export const MagsError = Mags.MagsError;
