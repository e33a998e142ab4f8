#!/bin/bash
# What kavach costs: `make bench` measures it against a plain INSERT of the same
# row, on a private server, and prints tables in markdown.
#
#   PART=…      speed contention many (the default); growth; quick (the default's,
#               briefly): bench/run.sh takes them as its arguments
#   ROUNDS=7    rounds of each comparison; medians are over rounds
#   SECONDS=5   of each measurement
#   CLIENTS='1 8 32'
#   ROWS=5000000, AGENTS=100000   how big the big ledger and installation of growth are
#
# Each contender of a comparison is a pgbench that keeps its sessions throughout.
# After a warm-up it is stopped (SIGSTOP), and continued for its turns alone; a
# checkpoint comes before each turn.  A round goes through the contenders forth and
# back (ABBA): what drifts hits all alike.  Tables are equally old and about equally
# big on all sides: a comparison has a database of its own.  Each has the INSERT, or
# what else it is about, compete with itself: that is what differences must exceed.
set -euo pipefail
# bash counts SECONDS itself from here on
duration=$(printenv SECONDS || echo 5)
cd "$(dirname "$0")/.."
source scripts/common.sh

rounds=${ROUNDS:-7}
clients=${CLIENTS:-1 8 32}
rows=${ROWS:-5000000}
many_agents=${AGENTS:-100000}
read -ra parts <<<"${*:-speed contention many}"
if [[ ${parts[*]} == quick ]]; then
  parts=(speed contention many)
  rounds=1 duration=2 clients=8
fi

relaxed="-c synchronous_commit=off -c kavach.force_sync_commit=off"
section=0

declare -A title=(
  [insert]="INSERT" [insert_again]="INSERT again"
  [authorize]="SELECT * FROM kavach_authorize(…)" [lean]="SELECT kavach_authorize(…)"
  [spread]="on 1,000 agents" [spread_again]="on 1,000 agents again" [one]="on one agent"
  [counter_rows]="PL/pgSQL with counter rows"
  [many_insert]="INSERT … SELECT" [many_again]="INSERT … SELECT again"
  [many_authorize]="SELECT kavach_authorize(…) FROM …"
  [many_insert_usage]="INSERT … SELECT of usage rows"
  [many_usage]="SELECT kavach_record_usage(…) FROM …"
  [small]="authorize, before" [small_again]="authorize, before, again" [big]="authorize, after"
  [small_insert]="INSERT, before" [big_insert]="INSERT, after"
)

main() {
  local part
  for part in "${parts[@]}"; do
    [[ $part =~ ^(speed|contention|many|growth)$ ]] || die "unknown part: $part"
  done
  scripts/setup.sh
  say "building and installing"
  make -s
  as_root make -s install PG_CONFIG="$PG_CONFIG" >/dev/null
  folder=$(cd / && as_server mktemp -d "$(temp_parent)/kavach-bench.XXXXXX")
  results=$folder/results.md
  trap clean_up EXIT
  trap 'exit 130' INT TERM
  "${CC:-cc}" -O2 -shared -fPIC -I"$("$PG_CONFIG" --includedir-server)" -o "$folder/uuid7.so" bench/uuid7.c
  chmod 755 "$folder/uuid7.so"
  # Room for every counter that growth needs, and for all contenders' sessions.
  start_server "$folder" "fsync = on" "shared_buffers = 1GB" "max_wal_size = 8GB" \
    "checkpoint_timeout = 1h" "max_connections = 300" "kavach.max_counters = 1000000"
  describe | tee "$results"
  for part in "${parts[@]}"; do
    "part_$part"
  done
  say "the tables are in $results"
}

clean_up() {
  cd /
  end_contenders
  stop_server "$folder"
  find "$folder" -mindepth 1 -maxdepth 1 ! -name results.md -exec rm -rf {} +
  [[ -s $results ]] || rm -rf "$folder"
}

describe() {
  printf 'PostgreSQL %s, %s cores (%s); rounds: %s, seconds of each measurement: %s.\n' \
    "$("$PG_CONFIG" --version | cut -d ' ' -f 2)" "$(nproc)" \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$rounds" "$duration"
}

plural() {
  if [[ $1 -eq 1 ]]; then echo "1 $2"; else echo "$1 $2s"; fi
}

# ---- parts ----

part_speed() {
  local c
  for c in $clients; do
    begin "$(plural "$c" client), durable commits" 1000 4
    contend insert insert "$c"
    contend authorize authorize "$c"
    contend lean lean "$c"
    contend insert_again insert "$c"
    compare
    same_rows
    finish
    begin "$(plural "$c" client), synchronous_commit and kavach.force_sync_commit off" 1000 4
    options=$relaxed
    contend insert insert "$c"
    contend authorize authorize "$c"
    contend lean lean "$c"
    contend insert_again insert "$c"
    compare
    finish
  done
}

part_contention() {
  local c
  for c in $clients; do
    begin "$(plural "$c" client), durable commits, one tenant's budget in every call" 1000 4
    query -f bench/counter_rows.sql
    contend spread authorize "$c"
    contend one authorize "$c" 1
    contend counter_rows counter_rows "$c"
    contend spread_again authorize "$c"
    compare
    finish
  done
}

part_many() {
  begin "1,000 calls in one statement, rows" 1000 4
  rows_each=1000
  contend many_insert many_insert 1 1
  contend many_authorize many_authorize 1 1
  contend many_again many_insert 1 1
  contend many_insert_usage many_insert_usage 1 1
  contend many_usage many_usage 1 1
  reference[many_usage]=many_insert_usage
  compare
  finish
}

# Relaxed, since a longer path through the CPU would hide behind a disk's sync, and
# with two sessions, which have 100,000 agents to know.
part_growth() {
  grow "100 agents, then $many_agents, all of them calling" 100 1 0 "$many_agents" 1 0
  grow "1 policy, then 1,000" 100 1 0 100 1000 0
  grow "an empty ledger, then $rows rows never vacuumed" 100 1 0 100 1 "$rows"
  grow_meanwhile
}

# grow TITLE, and AGENTS POLICIES ROWS before and after
grow() {
  begin "$1" "${@:2:3}"
  options=$relaxed
  contend small authorize 2
  contend small_again authorize 2
  contend small_insert insert 2
  use_database after "${@:5:3}"
  contend big authorize 2
  contend big_insert insert 2
  reference[small_insert]=small_insert
  reference[big_insert]=small_insert
  contenders=(small big small_again small_insert big_insert)
  compare
  finish
}

grow_meanwhile() {
  begin "alone, then with 50 new agents a second from another session" 1000 1
  options=$relaxed
  contend small authorize 2
  contend big authorize 2
  contend small_again authorize 2
  contend neighbour create_agent 1 1
  companion[big]=neighbour
  compare
  finish
}

# ---- a comparison ----

query() {
  "$(bindir)/psql" -X -q -v ON_ERROR_STOP=1 -h "$folder" -U postgres -d "$database" "$@"
}

# begin TITLE AGENTS POLICIES [ROWS]
begin() {
  section=$((section + 1))
  heading=$1
  contenders=()
  options=
  rows_each=1
  declare -gA pid=() sessions=() reference=() companion=()
  mkdir "$folder/$section"
  say "$heading"
  use_database before "${@:2}"
}

# use_database NAME AGENTS POLICIES [ROWS]: what contends from here on, does it there.
use_database() {
  agents=$2
  database=postgres query -c "CREATE DATABASE bench_${section}_$1"
  database=bench_${section}_$1
  if [[ ${4:-0} -gt 0 ]]; then
    query -c "ALTER DATABASE $database SET client_min_messages = warning"
  fi
  query -v agents="$2" -v policies="$3" -v rows="${4:-0}" -v library="$folder/uuid7.so" -f bench/setup.sql
  query -c "VACUUM ANALYZE kavach.agent, kavach.permission, kavach.budget_policy, kavach.budget_limit"
}

# contend NAME SCRIPT CLIENTS [AGENTS]: a contender, warmed up and stopped.
contend() {
  local name=$1 count=${4:-$agents} threads=$3
  [[ $threads -lt $(nproc) ]] || threads=$(nproc)
  cat bench/call.pgbench "bench/$2.pgbench" >"$folder/$section/$name.script"
  PGAPPNAME=$name PGOPTIONS=$options "$(bindir)/pgbench" -n -M prepared -c "$3" -j "$threads" -T 1000000 \
    -h "$folder" -U postgres -f "$folder/$section/$name.script" --log --log-prefix="$folder/$section/$name" \
    -D call=0 -D agents="$count" -D action=execute -D resource=mcp:openai:chat -D tenant=tenant_1 \
    -D tokens=150 "$database" >"$folder/$section/$name.out" 2>&1 &
  pid[$name]=$!
  until is_warm "$name" "$3" "$count"; do
    kill -0 "${pid[$name]}" 2>/dev/null || die "$name broke off: $(cat "$folder/$section/$name.out")"
    sleep 0.5
  done
  kill -STOP "${pid[$name]}"
  sessions[$name]=$(query -At -c "SELECT pid FROM pg_stat_activity WHERE application_name = '$name'")
  [[ $name == neighbour ]] || contenders+=("$name")
  reference[$name]=${contenders[0]}
}

# Whether each of the sessions has called each agent, going by the end of the log.
is_warm() {
  tail -q -n 5000 "$folder/$section/$1".[0-9]* 2>/dev/null |
    awk -v clients="$2" -v calls="$3" '$2 > calls && !seen[$1]++ { n++ } END { exit n < clients }'
}

# Forth and back, ROUNDS times.
compare() {
  local round name i order=("${contenders[@]}")
  for ((i = ${#contenders[@]} - 1; i >= 0; i--)); do
    order+=("${contenders[i]}")
  done
  for ((round = 1; round <= rounds; round++)); do
    for name in "${order[@]}"; do
      take_turn "$name" "$round"
    done
  done
}

# A line of "turns": contender, round, begin and end, CPU seconds of its backends.
take_turn() {
  local name=$1 from to cpu process
  local processes=("${pid[$name]}")
  [[ -z ${companion[$name]:-} ]] || processes+=("${pid[${companion[$name]}]}")
  query -c CHECKPOINT
  for process in "${processes[@]}"; do
    kill -CONT "$process" 2>/dev/null || die "$name broke off: $(cat "$folder/$section/$name.out")"
  done
  sleep 0.3
  cpu=$(cpu_time "$name")
  from=$EPOCHREALTIME
  sleep "$duration"
  to=$EPOCHREALTIME
  cpu=$(($(cpu_time "$name") - cpu))
  kill -STOP "${processes[@]}"
  printf '%s %s %s %s %s\n' "$name" "$2" "$from" "$to" "$cpu" >>"$folder/$section/turns"
  sleep 0.2
}

# Nanoseconds that a contender's backends have spent on a CPU.
cpu_time() {
  local process
  for process in ${sessions[$1]}; do
    cat "/proc/$process/schedstat" 2>/dev/null || true
  done | awk '{ sum += $1 } END { printf "%.0f", sum }'
}

# The INSERT has to write what the call writes, in all columns but these.
same_rows() {
  local same
  same=$(query -At -c "
    SELECT count(*)
      FROM (SELECT to_jsonb(a) - 'id' - 'ts' AS row FROM kavach.audit_log a WHERE agent_id = '4000000042' LIMIT 1) k
      JOIN (SELECT to_jsonb(a) - 'id' - 'ts' AS row FROM bench.audit_log a WHERE agent_id = '4000000042' LIMIT 1) b
     USING (row)")
  [[ $same -eq 1 ]] || die "the INSERT does not write the row that the call writes"
}

end_contenders() {
  local process
  for process in "${pid[@]}"; do
    kill -TERM "$process" 2>/dev/null || true
    kill -CONT "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  pid=()
}

finish() {
  local name
  end_contenders
  for name in "${contenders[@]}"; do
    printf '%s\t%s\t%s\n' "$name" "${reference[$name]}" "${title[$name]}"
  done >"$folder/$section/contenders"
  {
    printf '\n### %s\n\n' "${heading^}"
    awk -v calls="$rows_each" -f bench/report.awk "$folder/$section/contenders" "$folder/$section/turns" \
      "$folder/$section"/*.[0-9]*
  } | tee -a "$results"
  rm -rf "${folder:?}/$section"
  for name in before after; do
    database=postgres query -c "DROP DATABASE IF EXISTS bench_${section}_$name (FORCE)"
  done 2>/dev/null
}

main
