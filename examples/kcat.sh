#!/usr/bin/env bash
# Sends requests with kcat and prints their task_ids; prints the outcomes of one tenant's tasks, of the IDs given or all.
# Partitioner: murmur2_random, which is Java's. Without it kcat hashes with CRC32 and tasks do not lie on their home partition.
# Run: kcat.sh produce [BOOTSTRAP [LANE_TOPIC [TEXT...]]]
#      kcat.sh consume [BOOTSTRAP [RESULTS_TOPIC [TENANT [ID...]]]]    ends when all IDs are there, or after TIMEOUT_S (30) seconds
set -euo pipefail

json_string() { # control characters other than newline, tab and carriage return are not escaped
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  text=${text//$'\r'/\\r}
  printf '"%s"' "$text"
}

produce() {
  local bootstrap=${1:-127.0.0.1:9092} topic=${2:-triage.requests.normal} text id
  (($# > 2)) && shift 2 || set -- "Name three fruits."
  for text; do
    # Your own id makes sending again harmless: the same id under the same key is the same task, with one outcome.
    id=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    printf '{"task_id": "%s", "messages": [{"role": "user", "content": %s}]}' "$id" "$(json_string "$text")" |
      kcat -P -b "$bootstrap" -t "$topic" -k "$id" -X partitioner=murmur2_random -X acks=all
    echo "$id"
  done
}

consume() {
  local bootstrap=${1:-127.0.0.1:9092} topic=${2:-triage.results} wanted_tenant=${3:-default} seconds=${TIMEOUT_S:-30}
  (($# > 3)) && shift 3 || set --
  local id partition value headers tenant outcome
  local -A seen=() wanted=() missing=()
  for id; do wanted[$id]=1 missing[$id]=1; done
  # The headers come last: they may hold anything, a tab too.
  exec 3< <(exec timeout "$seconds" kcat -C -q -u -b "$bootstrap" -t "$topic" -o beginning \
    -X isolation.level=read_committed -f '%p\t%k\t%s\t%h\n')
  trap "kill $! 2>/dev/null || true" EXIT
  while ((${#missing[@]} || !${#wanted[@]})) && IFS=$'\t' read -r partition id value headers <&3; do
    [[ $id =~ ^[A-Za-z0-9._:-]{1,128}$ ]] || continue # a bash subscript must not be just anything
    tenant=${headers#*triage.tenant=} outcome=${headers#*triage.outcome=}
    [[ ${tenant%%,*} == "$wanted_tenant" ]] || continue
    [[ ${#wanted[@]} == 0 || ${wanted[$id]:-} ]] || continue
    # The first record of (task_id, partition) in offset order is the outcome, for ever.
    [[ ! ${seen[$id $partition]:-} ]] || continue
    seen[$id $partition]=1
    outcome=${outcome%%,*}
    [[ $outcome == completed ]] || value=
    printf '%s\t%s\t%s\t%s\n' "$id" "$partition" "$outcome" "$value"
    unset "missing[$id]"
  done
  if ((${#missing[@]})); then
    echo "no outcome within $seconds s: ${!missing[*]}" >&2
    return 1
  fi
}

case ${1:-} in
  produce | consume) "$@" ;;
  *) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
esac
