#!/usr/bin/env bash
# mags.sh: runs scripts in Roost's sandboxes with nothing but bash, curl and jq. `mags.sh help` says how.
#
#   MAGS_API_URL     where Roost is (default http://127.0.0.1:8484)
#   MAGS_API_TOKEN   your API token; it is told to curl by a file descriptor, so that `ps` does not show it
set -euo pipefail

usage() {
	cat <<'TEXT'
usage: mags.sh COMMAND ...

  run [options] SCRIPT        run it, show its output, end with its exit status
    -w, --workspace NAME      files that stay; also the job's name
    -n, --name NAME           the job's name alone
    -p, --persistent          the sandbox stays: tells its id and returns once it runs
    --url [--port N]          with -p: open a URL for the port (8080)
    --startup-command CMD     with -p: what runs when it wakes
    --no-sleep                with -p: never sleeps
    --base NAME               begin with a workspace's files and leave them as they are
    -e, --ephemeral           keep nothing
    -f, --file FILE           put a file into /root first; may be repeated
    --env NAME[=VALUE]        set a variable, without a value to the caller's; may be repeated
    -t, --timeout SECONDS     end the script after that long (300)
    --disk GB, --image NAME   another disk, another image
    -d, --detach              tell the job's id and do not wait
  new NAME [-p]               a sandbox that stays; with -p its files go to the object store
  exec JOB COMMAND            run a command in a job's sandbox, end with its exit status
  url JOB [PORT]              open a URL for a port (8080)
  url alias SUBDOMAIN WORKSPACE | url alias list | url alias remove SUBDOMAIN
  status JOB | logs JOB | stop JOB | sync JOB
  set JOB --no-sleep | set JOB --sleep
  list [PAGE]                 jobs, the newest first
  workspace list | workspace delete NAME [--force]
  upload FILE                 tells its id, for `file_ids` of the API
  cron add --name NAME --schedule EXPRESSION [-w WORKSPACE] [-p] [--timezone ZONE] SCRIPT
  cron list | cron enable ID | cron disable ID | cron remove ID

JOB is a request id, a name or a workspace. SCRIPT is shell text; - reads it from standard input.
MAGS_API_TOKEN (or MAGS_TOKEN) is your token, MAGS_API_URL where Roost is (http://127.0.0.1:8484).
TEXT
}

fail() {
	printf 'mags.sh: %s\n' "$1" >&2
	exit "${2:-1}"
}

wrong() { fail "$1; see mags.sh help" 2; }

value() { # OPTION COUNT: that an option's value follows
	[ "$2" -ge 2 ] || wrong "$1 needs a value"
}

known() { # COMMAND OPTION OPTION-THAT-IS-KNOWN...
	local command=$1 option=$2
	shift 2
	[[ " $* " == *" $option "* ]] || wrong "$command: unknown option $option"
}

positive() { # WHAT TEXT
	[[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || wrong "$1: '$2' is no whole number"
}

for tool in curl jq; do
	command -v "$tool" >/dev/null || fail "$tool is missing; install it, for example: apt-get install curl jq"
done

TOKEN=${MAGS_API_TOKEN:-${MAGS_TOKEN:-}}
API=${MAGS_API_URL:-http://127.0.0.1:8484}
API=${API%/}/api/v1

# call METHOD PATH [CURL-ARGUMENT...]: the answer's body. The token is not among the arguments, which others can see.
call() {
	local method=$1 path=$2 answer status body
	shift 2
	[ -n "$TOKEN" ] || fail "no API token: export MAGS_API_TOKEN=..."
	answer=$(curl -sS -X "$method" -w '\n%{http_code}' --config <(
		jq -rn --arg h "Authorization: Bearer $TOKEN" '"header = \($h | tojson)"'
	) "$@" -- "$API$path") || fail "cannot reach $API; is Roost running there? \`roost up\` starts it, MAGS_API_URL names another"
	status=${answer##*$'\n'}
	body=${answer%$'\n'*}
	if [ "$status" -ge 400 ]; then
		body=$(jq -er '.error // .message' <<<"$body" 2>/dev/null) || body="$API$path answered $status"
		[ "$status" != 401 ] || body="$body; check MAGS_API_TOKEN"
		fail "$body"
	fi
	printf '%s\n' "$body"
}

# send METHOD PATH: with standard input as the JSON body
send() { call "$1" "$2" -H 'Content-Type: application/json' --data-binary @-; }

encoded() { jq -rn --arg text "$1" '$text | @uri'; }

job() { # the path of the job that is meant
	printf '/mags-jobs/%s' "$(encoded "$1")"
}

one_job() { # COMMAND [JOB]
	[ -n "${2:-}" ] || wrong "$1: which job? Give its id, name or workspace; mags.sh list shows them"
}

text_of() { # a script as it was given, or standard input for -
	if [ "$1" = - ]; then cat; else printf '%s' "$1"; fi
}

show() { # a job's log: each line to the stream that it came from
	local logs
	logs=$(call GET "$(job "$1")/logs")
	jq -r '.logs[] | select(.source != "stderr" and .source != "system") | .message' <<<"$logs"
	jq -r '.logs[] | select(.source == "stderr" or .source == "system") | .message' <<<"$logs" >&2
}

upload() {
	[ -n "${1:-}" ] || wrong "which file?"
	[ -r "$1" ] || fail "cannot read $1"
	local quoted=${1//\\/\\\\} # curl reads a quoted path, so that commas and semicolons are part of it
	quoted=${quoted//\"/\\\"}
	call POST /mags-files -F "file=@\"$quoted\"" | jq -r .file_id
}

run() {
	local wanted='{"type": "inline"}' script='' given='' name='' url='' port=8080 detach=''
	field() { wanted=$(jq -c --arg name "$1" --argjson value "$2" '.[$name] = $value' <<<"$wanted"); }
	string() { field "$1" "$(jq -n --arg text "$2" '$text')"; }
	item() { wanted=$(jq -c --arg id "$1" '.file_ids += [$id]' <<<"$wanted"); }
	variable() {
		if [[ $1 != *=* ]]; then # the caller's own
			[ -n "${!1+x}" ] || wrong "--env $1: there is no such variable here; set it, or give $1=VALUE"
			set -- "$1=${!1}"
		fi
		wanted=$(jq -c --arg name "${1%%=*}" --arg value "${1#*=}" '.environment[$name] = $value' <<<"$wanted")
	}
	while [ $# -gt 0 ]; do
		case $1 in
		-p | --persistent) field persistent true ;;
		--no-sleep) field no_sleep true ;;
		--url) url=yes ;;
		-e | --ephemeral) field ephemeral true ;;
		-d | --detach) detach=yes ;;
		-) script=$1 given="${given}x" ;;
		--)
			shift
			[ $# -eq 1 ] || wrong "run: one script only; put it in quotes"
			script=$1 given="${given}x"
			;;
		-*)
			known run "$1" -w --workspace -n --name --base --startup-command --image --type --env -f --file --file-id \
				--port --disk -t --timeout
			value "$1" $#
			case $1 in
			-w | --workspace) string workspace_id "$2" && name=${name:-$2} ;;
			-n | --name) name=$2 ;;
			--base) string base_workspace_id "$2" ;;
			--startup-command) string startup_command "$2" ;;
			--image | --type) string rootfs_type "$2" ;;
			--env) variable "$2" ;;
			-f | --file)
				local id
				id=$(upload "$2")
				item "$id"
				;;
			--file-id) item "$2" ;;
			--port) positive "$1" "$2" && port=$2 ;;
			--disk) positive "$1" "$2" && field disk_gb "$2" ;;
			-t | --timeout) positive "$1" "$2" && field timeout "$2" ;;
			esac
			shift
			;;
		*) script=$1 given="${given}x" ;;
		esac
		shift
	done
	[ -n "$given" ] || wrong "run: give a script, like mags.sh run 'echo hello'"
	[ "$given" = x ] || wrong "run: one script only; put it in quotes"
	[ -z "$name" ] || string name "$name"
	local persistent
	persistent=$(jq -r '.persistent // false' <<<"$wanted")
	[ -z "$url" ] || [ "$persistent" = true ] || wrong "run: --url needs -p, since the sandbox must stay to be reached"
	local answer id
	# the script goes through a pipe: one argument of a process holds 128 KiB at most
	answer=$(text_of "$script" | jq -Rsc --argjson wanted "$wanted" '$wanted + {script: .}' | send POST /mags-jobs)
	id=$(jq -r .request_id <<<"$answer")
	if [ "$persistent" = true ] || [ -n "$detach" ]; then
		[ -n "$detach" ] || begun "$id"
		printf 'job %s\n' "$id"
		[ -z "$url" ] || open_url "$id" "$port"
		return
	fi
	trap 'leave "$id" 2' INT
	trap 'leave "$id" 15' TERM
	trap 'leave "$id" 1' HUP
	wait_for "$id"
}

# leave ID SIGNAL: who goes away stops what he waited for
leave() {
	trap '' HUP TERM
	call POST "$(job "$1")/stop" >/dev/null 2>&1 || true
	exit $((128 + $2))
}

# await ID CONDITION: the job's status, in `state`, once jq says that it is so. In this shell, which signals reach
await() {
	local pause=0.05
	while :; do
		state=$(call GET "$(job "$1")/status") || exit
		! jq -e "$2" >/dev/null <<<"$state" || return 0
		sleep "$pause"
		pause=0.3
	done
}

# begun ID: once its sandbox is there
begun() {
	local state
	await "$1" '.status != "pending"'
	[ "$(jq -r .status <<<"$state")" != error ] || fail "$(jq -r '.error // "it ended as an error; mags.sh logs shows why"' <<<"$state")"
}

# wait_for ID: until the job has ended; its output, and its exit status as ours
wait_for() {
	local state reason
	await "$1" '.status == "completed" or .status == "error"'
	show "$1"
	reason=$(jq -r '.error // empty' <<<"$state")
	[ -z "$reason" ] || printf 'mags.sh: %s\n' "$reason" >&2
	exit "$(jq -r '.exit_code // (if .status == "completed" then 0 else 1 end)' <<<"$state")"
}

# open_url JOB PORT
open_url() {
	local answer path
	path=$(job "$1")
	positive port "$2"
	begun "$1"
	answer=$(jq -nc --argjson port "$2" '{port: $port}' | send POST "$path/access")
	jq -r .url <<<"$answer"
}

execute() {
	local path answer
	path=$(job "${1:-}")
	shift
	[ "${1:-}" != -- ] || shift
	[ $# -gt 0 ] || wrong "which command?"
	answer=$(printf '%s' "$*" | jq -Rsc '{command: ., timeout: 300}' | send POST "$path/exec")
	jq -rj .stdout <<<"$answer"
	jq -rj .stderr <<<"$answer" >&2
	exit "$(jq -r '.exit_code // 1' <<<"$answer")"
}

new() {
	local name='' no_sync=true
	while [ $# -gt 0 ]; do
		case $1 in
		-p | --persistent) no_sync=false ;;
		-*) wrong "new: unknown option $1" ;;
		*) name=$1 ;;
		esac
		shift
	done
	[ -n "$name" ] || wrong "new needs a name"
	jq -nc --arg name "$name" --argjson no_sync "$no_sync" \
		'{type: "inline", script: "sleep infinity", persistent: true, workspace_id: $name, name: $name}
			+ if $no_sync then {no_sync: true} else {} end' | send POST /mags-jobs | jq -r .request_id
}

change() {
	local path no_sleep
	path=$(job "${1:-}")
	case ${2:-} in
	--no-sleep) no_sleep=true ;;
	--sleep) no_sleep=false ;;
	*) wrong "set JOB --no-sleep or set JOB --sleep" ;;
	esac
	jq -nc --argjson no_sleep "$no_sleep" '{no_sleep: $no_sleep}' | send PATCH "$path" | jq -r .request_id
}

list() {
	local page=${1:-1} answer
	positive page "$page"
	answer=$(call GET "/mags-jobs?page=$page&page_size=50")
	jq -r '.jobs[] | [.request_id, .status, .name, .workspace_id // "-"] | @tsv' <<<"$answer"
}

workspace() {
	case ${1:-} in
	list)
		local answer
		answer=$(call GET /mags-workspaces)
		jq -r '.workspaces[] | [.workspace_id, .job_count, .last_used] | @tsv' <<<"$answer"
		;;
	delete)
		[ -n "${2:-}" ] || wrong "which workspace?"
		if [ "${3:-}" != --force ]; then
			local answer
			read -rp "Delete workspace $2 and all its revisions? [y/N] " answer || true
			[ "$answer" = y ] || fail "nothing was deleted; --force does not ask"
		fi
		call DELETE "/mags-workspaces/$(encoded "$2")" | jq -r .message
		;;
	*) wrong "workspace list or workspace delete" ;;
	esac
}

alias_command() {
	local answer
	case ${1:-} in
	list)
		answer=$(call GET /mags-url-aliases)
		jq -r '.aliases[] | [.subdomain, .workspace_id, .url] | @tsv' <<<"$answer"
		;;
	remove)
		[ -n "${2:-}" ] || wrong "which alias?"
		call DELETE "/mags-url-aliases/$(encoded "$2")" | jq -r .message
		;;
	*)
		[ $# -eq 2 ] || wrong "url alias needs a subdomain and a workspace"
		answer=$(jq -nc --arg s "$1" --arg w "$2" '{subdomain: $s, workspace_id: $w}' | send POST /mags-url-aliases)
		jq -r .url <<<"$answer"
		;;
	esac
}

cron() {
	local answer
	case ${1:-} in
	add)
		shift
		cron_add "$@"
		;;
	list)
		answer=$(call GET /mags-cron)
		jq -r '.cron_jobs[] | [.id, .cron_expression, .enabled, .name] | @tsv' <<<"$answer"
		;;
	enable | disable)
		[ -n "${2:-}" ] || wrong "which cron job? Give its id"
		jq -nc --arg what "$1" '{enabled: ($what == "enable")}' | send PATCH "/mags-cron/$(encoded "$2")" | jq -r .id
		;;
	remove)
		[ -n "${2:-}" ] || wrong "which cron job? Give its id"
		call DELETE "/mags-cron/$(encoded "$2")" | jq -r .message
		;;
	*) wrong "cron add, list, enable, disable or remove" ;;
	esac
}

cron_add() {
	local wanted='{}' script='' given=''
	string() { wanted=$(jq -c --arg name "$1" --arg text "$2" '.[$name] = $text' <<<"$wanted"); }
	if [ $# -eq 3 ] && [[ "$1$2" != -* ]]; then # NAME EXPRESSION SCRIPT
		string name "$1"
		string cron_expression "$2"
		shift 2
	fi
	while [ $# -gt 0 ]; do
		case $1 in
		-p | --persistent) wanted=$(jq -c '.persistent = true' <<<"$wanted") ;;
		-) script=$1 given="${given}x" ;;
		-*)
			known 'cron add' "$1" --name --schedule --timezone -w --workspace
			value "$1" $#
			case $1 in
			--name) string name "$2" ;;
			--schedule) string cron_expression "$2" ;;
			--timezone) string timezone "$2" ;;
			-w | --workspace) string workspace_id "$2" ;;
			esac
			shift
			;;
		*) script=$1 given="${given}x" ;;
		esac
		shift
	done
	[ "$given" = x ] || wrong "cron add: give one script, in quotes"
	text_of "$script" | jq -Rsc --argjson wanted "$wanted" '$wanted + {script: .}' | send POST /mags-cron | jq -r .id
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
url | status | logs | stop | sync | exec | set) one_job "$command" "$@" ;;
esac
case $command in
run) run "$@" ;;
url)
	if [ "${1:-}" = alias ]; then
		shift
		alias_command "$@"
	else
		[ "${2:-}" != --port ] || set -- "$1" "${3:-}"
		open_url "${1:-}" "${2:-8080}"
	fi
	;;
set) change "$@" ;;
status) call GET "$(job "${1:-}")/status" | jq . ;;
logs) show "${1:-}" ;;
stop) call POST "$(job "${1:-}")/stop" | jq -r .message ;;
sync) call POST "$(job "${1:-}")/sync" | jq -r .message ;;
list) list "$@" ;;
exec) execute "$@" ;;
new) new "$@" ;;
upload) upload "${1:-}" ;;
workspace) workspace "$@" ;;
cron) cron "$@" ;;
help | -h | --help) usage ;;
*) wrong "unknown command '$command'" ;;
esac
