#!/usr/bin/env bash
# Runs a command on a thread of its own and captures what it changed.
#
# usage: examples/agent.sh REPOSITORY THREAD COMMAND [ARGUMENT]...
#
# The thread is made when there is none. Say who runs by setting HEDDLE_AGENT_PROVIDER, HEDDLE_AGENT_MODEL and
# HEDDLE_AGENT_SESSION: capture reads them. Several of these may run at once, each on its own thread.
# The exit code is the command's own. When it fails nothing is captured, and its changes are there at the next run.

set -euo pipefail

if [ $# -lt 3 ]; then
    printf 'usage: %s REPOSITORY THREAD COMMAND [ARGUMENT]...\n' "$0" >&2
    exit 64
fi
repository=$1 thread=$2
shift 2

threads=$(heddle -C "$repository" thread list --json)
create=()
if ! python3 -c 'import json, sys
names = [thread["name"] for thread in json.load(sys.stdin)["threads"]]
sys.exit(sys.argv[1] not in names)' "$thread" <<<"$threads"; then
    create=(--create)
fi

# Without a mountpoint, heddle chooses one and says where it is.
mounted=$(heddle -C "$repository" mount "$thread" "${create[@]}" --json)
trap 'cd / && heddle -C "$repository" unmount "$thread" --quiet' EXIT
repository=$(cd "$repository" && pwd)
cd "$(python3 -c 'import json, sys; print(json.load(sys.stdin)["mountpoint"])' <<<"$mounted")"

status=0
"$@" || status=$?
if [ $status -ne 0 ]; then
    printf 'agent.sh: the command failed with %s; nothing was captured\n' $status >&2
    exit $status
fi

# 65 says that the state of things refuses; here that is "nothing to capture", which is no failure of an agent.
heddle capture -m "$*" || status=$?
[ $status -eq 65 ] || exit $status
