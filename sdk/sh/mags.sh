#!/usr/bin/env bash
# mags.sh: runs scripts in Roost's sandboxes with nothing but bash, curl and jq.
#
#   MAGS_API_URL     where Roost is (default http://127.0.0.1:8484)
#   MAGS_API_TOKEN   your API token; it is told to curl by a file descriptor, so that `ps` does not show it
set -euo pipefail

usage() {
	cat <<-'TEXT'
		usage: mags.sh COMMAND

		  run [options] SCRIPT        run it, show its output, end with its exit status
		    -w, --workspace NAME      files that stay; also the job's name
		    -n, --name NAME           the job's name alone
		    -p, --persistent          the sandbox stays: tells its id and returns once it runs
		    --url [--port N]          with -p: open a URL for the port (8080)
		    --startup-command CMD     with -p: what runs when it wakes
		    --no-sleep                with -p: never sleeps
		    --base NAME               begin with a workspace's files and leave them as they are
		    -e, --ephemeral           keep nothing
		    -t, --timeout SECONDS     end the script after that long (300)
		    --env NAME=VALUE          set a variable; may be repeated
		  exec JOB COMMAND            run a command in a job's sandbox
		  url JOB [PORT]              open a URL for a port (8080)
		  status JOB | logs JOB | stop JOB | sync JOB
		  list
		  cron add NAME EXPRESSION SCRIPT | cron list | cron remove ID

		JOB is a request id, a name or a workspace.
	TEXT
}

fail() {
	echo "mags.sh: $1" >&2
	exit "${2:-1}"
}

for needed in curl jq; do
	command -v "$needed" >/dev/null || fail "needs $needed: install it, for example by apt-get install $needed"
done

base="${MAGS_API_URL:-http://127.0.0.1:8484}"
base="${base%/}/api/v1"
token="${MAGS_API_TOKEN:-${MAGS_TOKEN:-}}"

# api METHOD PATH [JSON]: the answer's body; a refusal is told in the server's words
api() {
	[ -n "$token" ] || fail "no token: export MAGS_API_TOKEN=..."
	local method="$1" path="$2" answer status
	local -a body=()
	if [ $# -gt 2 ]; then
		body=(--data-binary @-)
	fi
	answer="$(printf '%s' "${3:-}" | curl -sS -X "$method" "$base$path" -w '\n%{http_code}' \
		-H @<(printf 'Authorization: Bearer %s\nContent-Type: application/json\n' "$token") "${body[@]}")" ||
		fail "cannot reach $base; is Roost running there? Set MAGS_API_URL"
	status="${answer##*$'\n'}"
	answer="${answer%$'\n'*}"
	if [ "$status" -ge 400 ]; then
		fail "$(jq -r '.error // .' 2>/dev/null <<<"$answer" || printf '%s' "$answer")"
	fi
	printf '%s\n' "$answer"
}

# A name as part of a path
quoted() {
	jq -rn --arg name "$1" '$name | @uri'
}

state_of() {
	api GET "/mags-jobs/$(quoted "$1")/status"
}

show_logs() {
	local logs
	logs="$(api GET "/mags-jobs/$(quoted "$1")/logs")"
	jq -r '.logs[] | select(.source != "stderr") | .message' <<<"$logs"
	jq -r '.logs[] | select(.source == "stderr") | .message' <<<"$logs" >&2
}

open_url() {
	local answer
	answer="$(api POST "/mags-jobs/$(quoted "$1")/access" "$(jq -n --arg port "$2" '{port: ($port | tonumber)}')")"
	jq -r '.url' <<<"$answer"
}

# Waits until a jq condition on the job's status holds
await() {
	local state pause=0.05
	while :; do
		state="$(state_of "$1")"
		if jq -e "$2" >/dev/null <<<"$state"; then
			printf '%s\n' "$state"
			return
		fi
		sleep "$pause"
		pause=0.3
	done
}

number() {
	[[ "$2" =~ ^[0-9]{1,9}$ ]] || fail "$1: '$2' is no whole number" 2
}

run() {
	local wanted='{"type": "inline"}' url="" port=8080 persistent="" script="" have=""
	put() { wanted="$(jq --arg field "$1" --arg value "$2" '.[$field] = $value' <<<"$wanted")"; }
	put_json() { wanted="$(jq --arg field "$1" --argjson value "$2" '.[$field] = $value' <<<"$wanted")"; }
	while [ $# -gt 0 ]; do
		case "$1" in
		-w | --workspace | -n | --name | --port | --startup-command | --base | -t | --timeout | --env)
			[ $# -gt 1 ] || fail "$1 needs a value" 2
			;;
		esac
		case "$1" in
		-w | --workspace) put workspace_id "$2" && put name "$2" && shift 2 ;;
		-n | --name) put name "$2" && shift 2 ;;
		-p | --persistent) persistent=1 && put_json persistent true && shift ;;
		--url) url=1 && shift ;;
		--port) number "$1" "$2" && port="$2" && shift 2 ;;
		--startup-command) put startup_command "$2" && shift 2 ;;
		--no-sleep) put_json no_sleep true && shift ;;
		--base) put base_workspace_id "$2" && shift 2 ;;
		-e | --ephemeral) put_json ephemeral true && shift ;;
		-t | --timeout) number "$1" "$2" && put_json timeout "$((10#$2))" && shift 2 ;;
		--env)
			[[ "$2" == *=* ]] || fail "--env: '$2' has no '='; give NAME=VALUE" 2
			wanted="$(jq --arg name "${2%%=*}" --arg value "${2#*=}" '.environment[$name] = $value' <<<"$wanted")"
			shift 2
			;;
		-*) fail "run: unknown option $1; see mags.sh help" 2 ;;
		*)
			[ -z "$have" ] || fail "run: one script only; put it in quotes" 2
			script="$1" have=1
			shift
			;;
		esac
	done
	[ -n "$have" ] || fail "run: give a script, like mags.sh run 'echo hello'" 2
	[ -z "$url" ] || [ -n "$persistent" ] || fail "run: --url needs -p, since the sandbox must stay to be reached" 2
	put script "$script"
	local job state
	job="$(api POST /mags-jobs "$wanted" | jq -r '.request_id')"
	if [ -n "$persistent" ]; then
		state="$(await "$job" '.status != "pending"')"
		[ "$(jq -r '.status' <<<"$state")" != error ] || fail "$(jq -r '.error' <<<"$state")"
		echo "job $job"
		[ -z "$url" ] || open_url "$job" "$port"
		return
	fi
	state="$(await "$job" '.status == "completed" or .status == "error"')"
	show_logs "$job"
	jq -e '.exit_code != null' >/dev/null <<<"$state" || fail "$(jq -r '.error // "its exit status is not known"' <<<"$state")"
	return "$(jq -r '.exit_code' <<<"$state")"
}

run_in() {
	local answer
	answer="$(api POST "/mags-jobs/$(quoted "$1")/exec" "$(jq -n --arg command "$2" '{command: $command}')")"
	jq -j '.stdout' <<<"$answer"
	jq -j '.stderr' <<<"$answer" >&2
	jq -e '.exit_code != null' >/dev/null <<<"$answer" || fail "$(jq -r '.note // "its exit status is not known"' <<<"$answer")"
	return "$(jq -r '.exit_code' <<<"$answer")"
}

list() {
	api GET "/mags-jobs?page_size=50" | jq -r '.jobs[] | [.request_id, .status, .name, .workspace_id // "-"] | @tsv'
}

cron() {
	case "${1:-}" in
	add)
		[ $# -eq 4 ] || fail "usage: mags.sh cron add NAME EXPRESSION SCRIPT" 2
		local wanted
		wanted="$(jq -n --arg name "$2" --arg cron "$3" --arg script "$4" \
			'{name: $name, cron_expression: $cron, script: $script}')"
		api POST /mags-cron "$wanted" | jq -r '.id'
		;;
	list) api GET /mags-cron | jq -r '.cron_jobs[] | [.id, .cron_expression, .enabled, .name] | @tsv' ;;
	remove)
		[ $# -eq 2 ] || fail "usage: mags.sh cron remove ID" 2
		api DELETE "/mags-cron/$(quoted "$2")" >/dev/null
		;;
	*) fail "cron: give add, list or remove" 2 ;;
	esac
}

job_of() {
	[ -n "${2:-}" ] || fail "$1: which job? Give its id, name or workspace; mags.sh list shows them" 2
}

command="${1:-help}"
[ $# -eq 0 ] || shift
case "$command" in
run) run "$@" ;;
exec)
	[ $# -eq 2 ] || fail "usage: mags.sh exec JOB COMMAND" 2
	run_in "$@"
	;;
url)
	job_of url "$@"
	number port "${2:-8080}"
	open_url "$1" "${2:-8080}"
	;;
status)
	job_of status "$@"
	state_of "$1" | jq .
	;;
logs)
	job_of logs "$@"
	show_logs "$1"
	;;
stop | sync)
	job_of "$command" "$@"
	api POST "/mags-jobs/$(quoted "$1")/$command" | jq -r '.message'
	;;
list) list ;;
cron) cron "$@" ;;
help | -h | --help) usage ;;
*) fail "unknown command '$command'; see mags.sh help" 2 ;;
esac
