#!/bin/bash
# The demo: `make demo` builds and installs kavach, starts a private server in a
# folder of its own and tells the story on screen; `make demo TRACE=FILE` replays a
# trace of real calls instead of the sample history. The server stays up until
# `make demo-stop` (demo/run.sh stop) or the next `make demo`.
set -euo pipefail
trace=${TRACE:+$(realpath -- "$TRACE")}
cd "$(dirname "$0")/.."
source scripts/common.sh

sessions=32

main() {
  [[ -z $trace || -r $trace ]] || die "cannot read $trace"
  scripts/setup.sh
  build
  find_folder
  remove_server
  trap 'say "the demo ended early"; stop_server "$folder"' EXIT
  trap 'exit 130' INT TERM
  as_server mkdir -m 700 "$folder"
  start_server "$folder" "max_connections = 100"
  query -d postgres -c "CREATE DATABASE demo"

  query -f demo/story.sql
  race
  if [[ -n $trace ]]; then
    replay
  else
    sample_history
  fi
  farewell
  trap - EXIT
}

build() {
  say "building and installing"
  make -s
  as_root make -s install PG_CONFIG="$PG_CONFIG" >/dev/null
}

find_folder() {
  folder=$(temp_parent)/kavach-demo-$server_user
}

# Anybody may have made a folder of that name in /tmp: only ours is touched.
remove_server() {
  if [[ -L $folder ]] || { [[ -e $folder ]] && ! as_server test -O "$folder"; }; then
    die "$folder is not the demo's: remove it, or set TMPDIR"
  fi
  if [[ -e $folder ]]; then
    stop_server "$folder"
    (cd / && as_server rm -rf "$folder")
  fi
}

query() {
  "$(bindir)/psql" -X -q -P pager=off -v ON_ERROR_STOP=1 -v VERBOSITY=terse \
    -h "$folder" -U postgres -d demo "$@"
}

race() {
  local output
  query -f demo/race_start.sql
  output=$("$(bindir)/pgbench" -n -h "$folder" -U postgres -c "$sessions" -j 2 -t 20 \
    -f demo/race.sql demo 2>&1) || die "the race broke off: $output"
  query -f demo/race_end.sql
}

sample_history() {
  query -f demo/history.sql
  query -c "CALL demo.make_history()" 2>&1 | progress
  query -v csv="$folder/ledger.csv" -f demo/report.sql
}

# The totals are computed twice: by kavach, and by awk over the file alone.
replay() {
  query -f demo/trace.sql
  query -c '\copy demo.agent FROM pstdin (FORMAT csv, HEADER)' <demo/trace_agents.csv
  query -c '\copy demo.budget FROM pstdin (FORMAT csv, HEADER)' <demo/trace_budgets.csv
  query -c '\copy demo.call (ts, context, generated) FROM pstdin (FORMAT csv, HEADER)' <"$trace"
  query -c "CALL demo.replay()" 2>&1 | progress
  awk -f demo/trace_expect.awk demo/trace_agents.csv demo/trace_budgets.csv "$trace" |
    query -c '\copy demo.expected FROM pstdin (FORMAT csv)'
  query -v csv="$folder/ledger.csv" -f demo/trace_report.sql
}

# Draws "progress N of M" notices as a bar, on a terminal in place, else once per
# tenth; other lines pass through.
progress() {
  local line done_ total tenth=-1 bar
  while IFS= read -r line; do
    if [[ $line =~ progress\ ([0-9]+)\ of\ ([0-9]+) ]]; then
      done_=${BASH_REMATCH[1]} total=${BASH_REMATCH[2]}
      printf -v bar '%*s' $((done_ * 40 / total)) ''
      if [[ -t 1 ]]; then
        printf '\r  [%-40s] %s of %s calls' "${bar// /#}" "$done_" "$total"
        [[ $done_ -lt $total ]] || echo
      elif [[ $((done_ * 10 / total)) -ne $tenth ]]; then
        tenth=$((done_ * 10 / total))
        printf '  [%-40s] %s of %s calls\n' "${bar// /#}" "$done_" "$total"
      fi
    else
      printf '%s\n' "$line"
    fi
  done
}

farewell() {
  printf '\n%s\n' "The server is still up. To look around:"
  printf '\n    %s\n' "psql -h $folder -U postgres demo"
  printf '\n%s\n' "To stop it and remove its folder:"
  printf '\n    %s\n\n' "make -C $PWD demo-stop"
}

case ${1:-start} in
  start) main ;;
  stop) find_folder && remove_server ;;
  *) die "usage: demo/run.sh [start|stop]" ;;
esac
