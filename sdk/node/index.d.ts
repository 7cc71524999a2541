// Types of @magpiecloud/mags, kept by hand beside lib/mags.js. Answers can be read in snake_case, as the server sends them,
// and in camelCase.

/** Both ways to read a name. */
type CamelName<Name extends string> = Name extends `${infer Head}_${infer Tail}` ? `${Head}${Capitalize<CamelName<Tail>>}` : Name;
type Readable<Answer> =
  Answer extends readonly (infer Item)[] ? Readable<Item>[]
  : Answer extends object ? { [Name in keyof Answer]: Readable<Answer[Name]> } & {
      [Name in keyof Answer as Name extends string ? CamelName<Name> : Name]: Readable<Answer[Name]>;
    }
  : Answer;

declare class Mags {
  static readonly Mags: typeof Mags;
  static readonly default: typeof Mags;
  constructor(options?: Mags.Options);
  readonly apiUrl: string;

  /** Resolves when the job is accepted. */
  run(script: string, options?: Mags.RunOptions): Promise<Mags.Accepted>;
  /** Resolves when the job has ended, well or not; rejects after `timeout` ms, and the job goes on. */
  runAndWait(script: string, options?: Mags.RunOptions & Mags.WaitOptions): Promise<Mags.Result>;
  status(nameOrId: string): Promise<Mags.JobStatus>;
  logs(nameOrId: string): Promise<Mags.Logs>;
  list(options?: Mags.ListOptions): Promise<Mags.JobPage>;
  listJobs(options?: Mags.ListOptions): Promise<Mags.JobPage>;
  updateJob(nameOrId: string, changes: Mags.JobChanges): Promise<Mags.JobRecord>;
  /** Port 22: SSH; any other: a URL. */
  enableAccess(nameOrId: string, port: 22): Promise<Mags.SshAccess>;
  enableAccess(nameOrId: string, port?: number): Promise<Mags.UrlAccess>;
  url(nameOrId: string, port?: number): Promise<Mags.UrlAccess>;
  stop(nameOrId: string): Promise<Mags.Done>;
  sync(nameOrId: string): Promise<Mags.Done>;
  /** `timeout`: ms that the command may take; 30,000 unless said. */
  exec(nameOrId: string, command: string, options?: { timeout?: number }): Promise<Mags.ExecResult>;
  /** A sandbox that stays, in the workspace `name`; resolves when it runs. */
  new(name: string, options?: Mags.NewOptions): Promise<Mags.Started>;
  resize(nameOrId: string, diskGb: number, options?: Mags.WaitOptions): Promise<Mags.Started>;
  findJob(nameOrId: string): Promise<Mags.JobStatus | null>;
  usage(options?: { windowDays?: number }): Promise<Mags.Usage>;
  /** The id of the upload, for `fileIds`. */
  uploadFile(file: string): Promise<string>;
  uploadFiles(files: string[]): Promise<string[]>;
  listWorkspaces(): Promise<Mags.WorkspaceList>;
  deleteWorkspace(workspaceId: string): Promise<Mags.Done>;
  urlAliasCreate(subdomain: string, workspaceId: string, domain?: string): Promise<Mags.Alias>;
  urlAliasList(): Promise<Mags.AliasList>;
  urlAliasDelete(subdomain: string): Promise<Mags.Done>;
  cronCreate(options: Mags.NewCron): Promise<Mags.Cron>;
  cronList(): Promise<Mags.CronList>;
  cronGet(id: string): Promise<Mags.Cron>;
  cronUpdate(id: string, changes: Partial<Mags.NewCron>): Promise<Mags.Cron>;
  cronDelete(id: string): Promise<Mags.Done>;
  /** Chromium in a sandbox, and where programs drive it; `stop(requestId)` ends it. */
  browser(options?: Mags.BrowserOptions): Promise<Mags.Browser>;
}

declare namespace Mags {
  class MagsError extends Error {
    constructor(message: string, status?: number, options?: { cause?: unknown });
    /** HTTP status of the server's answer; undefined where there was none. */
    readonly status: number | undefined;
    readonly statusCode: number | undefined;
  }

  interface Options {
    /** Default MAGS_API_TOKEN, MAGS_TOKEN, or what `roost login` kept. */
    apiToken?: string;
    /** Default MAGS_API_URL, what `roost login` kept, or http://127.0.0.1:8484. */
    apiUrl?: string;
    /** ms, for one answer; default 30,000. */
    timeout?: number;
  }

  interface RunOptions {
    name?: string;
    workspaceId?: string;
    baseWorkspaceId?: string;
    baseRevision?: string;
    persistent?: boolean;
    noSync?: boolean;
    noSleep?: boolean;
    ephemeral?: boolean;
    startupCommand?: string;
    idleMinutes?: number;
    environment?: Record<string, string>;
    fileIds?: string[];
    rootfsType?: string;
    diskGb?: number;
    vcpus?: number;
    memoryMb?: number;
    memGb?: number;
    /** Seconds that the script may take. */
    timeoutSeconds?: number;
  }

  interface WaitOptions {
    /** ms; default 60,000. */
    timeout?: number;
    /** ms between two looks, at most; default 1,000. */
    pollInterval?: number;
  }

  type NewOptions = Omit<RunOptions, 'workspaceId' | 'noSync' | 'ephemeral'> & WaitOptions;

  interface ListOptions {
    page?: number;
    pageSize?: number;
  }

  interface JobChanges {
    startupCommand?: string;
    noSleep?: boolean;
    idleMinutes?: number;
  }

  interface NewCron {
    name: string;
    cronExpression: string;
    script: string;
    workspaceId?: string;
    environment?: Record<string, string>;
    persistent?: boolean;
    enabled?: boolean;
    timezone?: string;
    missed?: 'none' | 'latest' | 'all';
    overlap?: 'skip' | 'queue' | 'parallel';
    timeout?: number;
    rootfsType?: string;
    vcpus?: number;
    memoryMb?: number;
    diskGb?: number;
  }

  interface BrowserOptions {
    /** Keeps the profile, as the workspace of this name. */
    name?: string;
    /** ms; default 120,000. */
    timeout?: number;
    /** Image that holds Chromium; default `browser`. */
    rootfsType?: string;
    memoryMb?: number;
  }

  type Status = 'pending' | 'running' | 'sleeping' | 'completed' | 'error';

  type Accepted = Readable<{ request_id: string; status: string; message: string }>;
  type Started = Readable<{ request_id: string; status: 'running' }>;
  type Done = Readable<{ success: boolean; message: string }>;
  type LogEntry = Readable<{ timestamp: string; level: 'info' | 'error'; message: string; source: string }>;

  interface Logs {
    logs: LogEntry[];
  }

  type Result = Readable<{ request_id: string; status: Status; exit_code: number; duration_ms: number }> & Logs;

  interface RawStatus {
    request_id: string;
    name: string;
    status: Status;
    persistent: boolean;
    sleeping: boolean;
    subdomain: string;
    created_at: string;
    url?: string;
    workspace_id?: string;
    vm_id?: string;
    exit_code?: number;
    script_duration_ms?: number;
    started_at?: string;
    completed_at?: string;
    stopped?: boolean;
    sleep_depth?: 'frozen' | 'cooling' | 'cold' | 'waking';
    asleep_since?: string;
    awake_until?: string;
    error?: string;
    error_message?: string;
  }

  interface RawRecord extends RawStatus {
    script: string;
    type: string;
    rootfs_type: string;
    vcpus: number;
    memory_mb: number;
    disk_gb: number;
    timeout_seconds: number;
    base_workspace_id?: string;
    base_revision?: string;
    no_sync?: boolean;
    no_sleep?: boolean;
    startup_command?: string;
    idle_minutes?: number;
    file_ids?: string[];
  }

  type JobStatus = Readable<RawStatus>;
  type JobRecord = Readable<RawRecord>;
  type JobPage = Readable<{ jobs: RawStatus[]; total: number; page: number; page_size: number }>;

  type UrlAccess = Readable<{
    success: boolean;
    url: string;
    subdomain: string;
    port: number;
    access_type: string;
    access: string;
    ipv6_address?: string;
    access_token?: string;
    expires_at?: string;
  }>;

  type SshAccess = Readable<{
    success: boolean;
    ssh_host: string;
    ssh_port: number;
    ssh_private_key: string;
    ssh_user: string;
    access_type: string;
    host_key: string;
  }>;

  type ExecResult = Readable<{
    exit_code: number | null;
    output: string;
    stdout: string;
    stderr: string;
    truncated: boolean;
    timed_out: boolean;
    duration_ms: number;
    note?: string;
  }>;

  interface RawAmounts {
    total_jobs: number;
    vm_seconds: number;
    frozen_seconds: number;
    cpu_seconds: number;
    memory_mb_seconds: number;
    bytes_in: number;
    bytes_out: number;
    stored_bytes: number;
  }

  type Usage = Readable<
    RawAmounts & { window_days: number; since: string; workspaces: (RawAmounts & { workspace_id: string })[] }
  >;

  type WorkspaceList = Readable<{
    workspaces: {
      workspace_id: string;
      job_count: number;
      last_used: string;
      has_active: boolean;
      persistent: boolean;
      created_at: string;
      revision?: string;
    }[];
    total: number;
  }>;

  interface RawAlias {
    id: string;
    subdomain: string;
    url: string;
    workspace_id: string;
    domain: string;
    port: number;
    access: string;
    created_at: string;
    access_token?: string;
    expires_at?: string;
  }

  type Alias = Readable<RawAlias>;
  type AliasList = Readable<{ aliases: RawAlias[]; total: number }>;

  interface RawCron {
    id: string;
    name: string;
    cron_expression: string;
    timezone: string;
    script: string;
    persistent: boolean;
    enabled: boolean;
    missed: 'none' | 'latest' | 'all';
    overlap: 'skip' | 'queue' | 'parallel';
    environment_names: string[];
    rootfs_type: string;
    vcpus: number;
    memory_mb: number;
    disk_gb: number;
    timeout_seconds: number;
    created_at: string;
    updated_at: string;
    workspace_id: string | null;
    next_run_at: string | null;
    last_run_at: string | null;
    last_status?: string;
    last_request_id?: string;
  }

  type Cron = Readable<RawCron>;
  type CronList = Readable<{ cron_jobs: RawCron[]; total: number }>;

  interface Browser {
    requestId: string;
    cdpUrl: string;
    cdpHttpUrl: string;
    wsEndpoint: string;
  }
}

export = Mags;
