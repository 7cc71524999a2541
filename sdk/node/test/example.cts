import Mags = require('@magpiecloud/mags');

const mags: Mags = new Mags();
const failed = (error: unknown): boolean => error instanceof Mags.MagsError && error.status === 409;
const status: Promise<Mags.JobStatus> = mags.status('myproject');

export = { failed, status };
