#!/bin/bash
# What kavach costs: `make bench` measures it against a plain INSERT of the same
# row, on a private server, and prints tables in markdown.
#
#   PART=…      bench/run.sh takes them as its arguments:
#     speed         authorize and INSERT (with contention and many the default)
#     contention    one agent and many, and counters in rows
#     many          a thousand calls in one statement
#     settle        authorize, then record_usage: what everybody calls
#     cold          sessions that have just connected; others' policies; memory
#     growth        agents, policies, rows
#     scale         reports, and what is cold, over a ledger of millions of rows
#     instructions  of a call, counted with callgrind
#     quick         the default's, briefly
#   ROUNDS=7    rounds of each comparison; medians are over rounds
#   SECONDS=5   of each measurement
#   CLIENTS='1 8 32'              settle has 8 of its own accord, cold 8 and 32
#   ROWS=5000000, AGENTS=100000   how big the big ledger and installation of growth
#               are, AGENTS and POLICIES=20000 those of cold; ROWS=10000000 that of scale
#
# Each contender of a comparison is a pgbench that keeps its sessions throughout.
# After a warm-up it is stopped (SIGSTOP), and continued for its turns alone; a
# checkpoint comes before each turn.  A round goes through the contenders forth and
# back (ABBA): what drifts hits all alike.  Tables are equally old and about equally
# big on all sides: a comparison has a database of its own.  Each has the INSERT, or
# what else it is about, compete with itself: that is what differences must exceed.
#
# A cold contender is another pgbench at each of its turns, whose sessions connect for
# it and have called nobody before.  Each part has a server of its own, with kavach's
# settings as they come, but for growth.
set -euo pipefail
# bash counts SECONDS itself from here on
duration=$(printenv SECONDS || echo 5)
cd "$(dirname "$0")/.."
source scripts/common.sh

rounds=${ROUNDS:-7}
clients=${CLIENTS:-1 8 32}
settle_clients=${CLIENTS:-8}
cold_clients=${CLIENTS:-8 32}
rows=${ROWS:-5000000}
scale_rows=${ROWS:-10000000}
many_agents=${AGENTS:-100000}
many_policies=${POLICIES:-20000}
read -ra parts <<<"${*:-speed contention many}"
if [[ ${parts[*]} == quick ]]; then
  parts=(speed contention many)
  rounds=1 duration=2 clients=8
fi

relaxed="-c synchronous_commit=off -c kavach.force_sync_commit=off"
section=0
runs=0

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
  [pair]="kavach_authorize(…), then kavach_record_usage(…)" [pair_again]="the two calls again"
  [insert_pair]="two INSERTs" [insert_pair_again]="two INSERTs again"
  [small_pair]="the two calls, before" [small_pair_again]="the two calls, before, again"
  [big_pair]="the two calls, after"
  [small_inserts]="two INSERTs, before" [big_inserts]="two INSERTs, after"
  [few]="4 policies" [few_again]="4 policies again" [alone]="$many_policies policies"
  [beside]="$many_policies, and 20 a second from another session"
  [held]="authorize, no batch closed meanwhile" [held_again]="the same again" [closing]="authorize, batches closed"
)

main() {
  local part
  for part in "${parts[@]}"; do
    [[ $part =~ ^(speed|contention|many|settle|cold|growth|scale|instructions)$ ]] || die "unknown part: $part"
  done
  scripts/setup.sh
  say "building and installing"
  make -s
  as_root make -s install PG_CONFIG="$PG_CONFIG" >/dev/null
  folder=$(cd / && as_server mktemp -d "$(temp_parent)/kavach-bench.XXXXXX")
  results=$folder/results.md
  trap clean_up EXIT
  trap 'exit 130' INT TERM
  compile uuid7
  describe | tee "$results"
  for part in "${parts[@]}"; do
    "part_$part"
  done
  say "the tables are in $results"
}

# compile NAME: a library for the server
compile() {
  "${CC:-cc}" -O2 -shared -fPIC -I"$("$PG_CONFIG" --includedir-server)" -o "$folder/$1.so" "bench/$1.c"
  chmod 755 "$folder/$1.so"
}

clean_up() {
  cd /
  end_contenders
  stop_server "$folder"
  find "$folder" -mindepth 1 -maxdepth 1 ! -name results.md -exec rm -rf {} +
  [[ -s $results ]] || rm -rf "$folder"
}

# serve [SETTING…]: a new server, with room for all contenders' sessions.
serve() {
  stop_server "$folder"
  rm -rf "$folder/data"
  start_server "$folder" "fsync = on" "shared_buffers = 1GB" "max_wal_size = 8GB" \
    "checkpoint_timeout = 1h" "max_connections = 300" "$@"
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
  serve
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
  serve
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
  serve
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
  serve "kavach.max_counters = 1000000"
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

part_settle() {
  local c
  serve
  for c in $settle_clients; do
    settle "$c" "durable commits" ""
    settle "$c" "synchronous_commit and kavach.force_sync_commit off" "$relaxed"
    settle_grown "$c" "12 earlier months, then 60" 12 60
    settle_stale "$c"
  done
}

# settle CLIENTS HOW OPTIONS
settle() {
  begin "$(plural "$1" client), $2, 12 earlier months" 1000 4 20000 12
  query -c "VACUUM ANALYZE"
  options=$3
  contend insert_pair insert_pair "$1"
  contend pair pair "$1"
  contend insert_pair_again insert_pair "$1"
  compare
  same_rows
  finish
}

# settle_grown CLIENTS TITLE MONTHS MONTHS: with few agents, here and below, as a warm-up of
# many would take for ever should each call search a table.
settle_grown() {
  begin "$(plural "$1" client), $2" 100 4 20000 "$3"
  query -c "VACUUM ANALYZE"
  options=$relaxed
  contend small_pair pair "$1"
  contend small_pair_again pair "$1"
  contend small_inserts insert_pair "$1"
  use_database after 100 4 20000 "$4"
  query -c "VACUUM ANALYZE"
  contend big_pair pair "$1"
  contend big_inserts insert_pair "$1"
  compare_grown
}

# Plans that were made as a month began, and which nothing has replaced since: what
# they search is empty, they think.
settle_stale() {
  begin "$(plural "$1" client), 100,000 rows this month, then plans and statistics from before them" 100 4 100000 12
  query -c "VACUUM ANALYZE"
  options=$relaxed
  contend small_pair pair "$1"
  contend small_pair_again pair "$1"
  contend small_inserts insert_pair "$1"
  use_database after 100 4 0 12
  keep_statistics
  query -c "VACUUM ANALYZE"
  contend big_pair pair "$1"
  contend big_inserts insert_pair "$1"
  query -v agents=100 -v rows=100000 -f bench/rows.sql
  compare_grown
}

compare_grown() {
  reference[small_inserts]=small_inserts
  reference[big_inserts]=small_inserts
  contenders=(small_pair big_pair small_pair_again small_inserts big_inserts)
  compare
  finish
}

# Keeps autovacuum from renewing the ledger's statistics.
keep_statistics() {
  query <<'SQL'
SET kavach.allow_alter = on;
SELECT format('ALTER TABLE %s SET (autovacuum_enabled = off)', inhrelid::regclass)
  FROM pg_inherits
 WHERE inhparent IN ('kavach.audit_log'::regclass, 'bench.audit_log'::regclass)
\gexec
SQL
}

part_cold() {
  local c measured=$duration
  serve
  for c in $cold_clients; do
    cold "$(plural "$c" client) that have just connected, $many_agents agents" "$many_agents" "$c"
    [[ $duration -lt 2 ]] || duration=2
    cold "$(plural "$c" client) in their first $duration seconds, 1,000 agents" 1000 "$c"
    duration=$measured
  done
  cold_policies
  cold_memory
}

# cold TITLE AGENTS CLIENTS
cold() {
  begin "$1" "$2" 4
  contend_cold insert insert "$3"
  contend_cold authorize authorize "$3"
  contend_cold insert_again insert "$3"
  compare
  series=authorize
  finish
}

cold_policies() {
  begin "policies for others: 20 a second, $many_policies in all" 1000 4
  options=$relaxed
  contend few authorize 8
  contend few_again authorize 8
  use_database after 1000 "$many_policies"
  contend alone authorize 8
  contend beside authorize 8
  contend neighbour create_policy 1 1
  companion[beside]=neighbour
  contenders=(few alone beside few_again)
  compare
  finish
}

cold_memory() {
  local idle called
  begin "memory" "$many_agents" 4
  options=$relaxed
  contend idle idle 1 1
  contend called authorize 1
  idle=$(private_memory idle)
  called=$(private_memory called)
  {
    printf '\n### Memory\n\n| | |\n| --- | --: |\n'
    printf '| private memory of an idle session, kB | %s |\n' "$idle"
    printf '| of one that has called %s agents, kB | %s |\n' "$many_agents" "$called"
    printf '| more, kB | **%s** |\n' "$((called - idle))"
    printf '| more for each agent, bytes | %s |\n' "$(((called - idle) * 1024 / many_agents))"
  } | tee -a "$results"
  leave
  stop_server "$folder"
  printf '| shared memory for each of kavach.max_counters, bytes | %s |\n' "$(counter_size)" | tee -a "$results"
}

# Of a contender's session, in kB: not what it alone has touched of shared memory so far.
private_memory() {
  awk '/^[0-9a-f]+-[0-9a-f]+ / { private = $2 ~ /p$/ } private && /^Private/ { sum += $2 } END { print sum }' \
    "/proc/${sessions[$1]}/smaps"
}

# What a million more of them add to all of shared memory, which the stopped server tells in MB.
counter_size() {
  echo $((($(shared_memory 2000000) - $(shared_memory 1000000)) * 1048576 / 1000000))
}

shared_memory() {
  (cd "$folder" && as_server "$(bindir)/postgres" -D "$folder/data" \
    -c kavach.max_counters="$1" -C shared_memory_size 2>/dev/null)
}

# ---- scale ----

part_scale() {
  serve "autovacuum_max_workers = 1"
  begin "a ledger of $scale_rows rows: a year of 1,000 agents of 300 users" 1000 4
  database=postgres query -c "DROP DATABASE bench_${section}_before"
  users=300 tenants=30 use_database before 1000 4
  fill_ledger
  {
    printf '\n### %s\n\n' "${heading^}"
    printf '| | ms | the same from raw rows, ms | times faster |\n| --- | --: | --: | --: |\n'
    scale_reports
    printf '\n| | ms |\n| --- | --: |\n'
    scale_pages
    scale_restart
    printf '\n| | |\n| --- | --: |\n'
    scale_size
  } | tee -a "$results"
  scale_statuses
  leave
  scale_worker
}

# The calls of a year, in order: a request each, then what settles all but one in two thousand.
fill_ledger() {
  say "filling the ledger"
  query -c "SELECT kavach_create_months((now() - interval '1 year')::date, now()::date)" >"$folder/$section/out"
  filling | PGOPTIONS=$relaxed query >>"$folder/$section/out" || die "could not fill the ledger"
  until_closed
  query -c "VACUUM ANALYZE"
  say "$(query -At -c "SELECT count(*) FROM kavach.audit_log") rows, $(query -At -c "SELECT count(*) FROM kavach.batch") batches"
}

# The statements for that, a thousand calls at a time.
filling() {
  local at steps=$((scale_rows / 2000)) now
  now=$(date +%s)
  for ((at = 0; at < steps; at++)); do
    printf "SET kavach.clock = '%s';\n" "$(TZ=UTC printf '%(%F %T)T+00' $((now - 31536000 + at * (31536000 / steps))))"
    printf "SELECT count(kavach_authorize((4000000001 + (i * 7919 + %s) %% 1000)::text, 'execute', 'mcp:openai:chat', tokens_cost => 100 + i %% 100, request_id => 'r-%s-' || i)) FROM generate_series(1, 1000) i;\n" "$at" "$at"
    printf "SELECT count(kavach_record_usage((4000000001 + (i * 7919 + %s) %% 1000)::text, 90 + i %% 100, request_id => 'r-%s-' || i)) FROM generate_series(1, 1000 - (%s %% 2)) i;\n" "$at" "$at" "$at"
  done
}

until_closed() {
  wait_until 3600 is_closed || die "batches stay open"
}

is_closed() {
  [[ $(query -At -c "SELECT kavach.close_batches()" -c "SELECT count(*) FROM kavach.batch_status WHERE rows > 0" | tail -n 1) -eq 0 ]]
}

# timed SQL: the median of five runs of a session, in ms.
timed() {
  {
    printf '\\timing on\n'
    printf '%s \\g /dev/null\n' "$1" "$1" "$1" "$1" "$1"
  } | query | awk '/^Time:/ { print $2 }' | sort -n | sed -n 3p
}

# against TITLE SQL SQL: a report, and what it is compared with.
against() {
  local report raw
  report=$(timed "$2")
  raw=$(timed "$3")
  printf '| %s | %s | %s | **%s** |\n' "$1" "$report" "$raw" "$(awk -v a="$raw" -v b="$report" 'BEGIN { printf "%.0f", a / b }')"
}

scale_reports() {
  local month year day until figures
  month=$(date -u -d "$(date -u +%Y-%m-15) -1 month" +%m) year=$(date -u -d "$(date -u +%Y-%m-15) -1 month" +%Y)
  day=$(date -u -d "$(date -u +%Y-%m-15) -3 month" +%Y-%m-01)
  until=$(date -u +%Y-%m-01)
  figures="count(*) FILTER (WHERE kind = 'authorize'), count(*) FILTER (WHERE kind = 'authorize' AND result <> 'allowed'), sum(tokens_cost)"
  against "a month's bill" "SELECT * FROM kavach_billing_report($year, $month)" \
    "SELECT tenant_id, user_id, $figures FROM kavach.audit_log WHERE ts >= '$year-$month-01Z' AND ts < timestamptz '$year-$month-01Z' + interval '1 month' GROUP BY 1, 2"
  against "all days of three months" "SELECT * FROM kavach_cost_by_day(NULL, '$day 00:00Z', '$until 00:00Z')" \
    "SELECT (ts AT TIME ZONE 'UTC')::date, $figures FROM kavach.audit_log WHERE ts >= '$day 00:00Z' AND ts < '$until 00:00Z' GROUP BY 1"
  against "kavach.usage_by_user" "SELECT * FROM kavach.usage_by_user" \
    "SELECT user_id, $figures FROM kavach.audit_log GROUP BY 1"
  against "kavach.unsettled ($(query -At -c "SELECT count(*) FROM kavach.unsettled") rows)" "SELECT * FROM kavach.unsettled" \
    "SELECT * FROM kavach.audit_log a WHERE kind = 'authorize' AND result = 'allowed' AND tokens_cost IS NOT NULL AND NOT EXISTS (SELECT FROM kavach.audit_log u WHERE u.settles = a.id)"
}

# First pages of the audit log: for those with no row, few, and their share of all.
scale_pages() {
  query -c "SELECT kavach_create_agent('few', 'few', 'few', permissions => '[{\"resource\": \"*\", \"actions\": [\"*\"]}]')" >/dev/null
  query -c "SELECT format('SET kavach.clock = %L; SELECT kavach_authorize(''few'', ''a'', ''b'', tokens_cost => 1);', now() - interval '1 day' * 30 * i) FROM generate_series(1, 11) i" \
    -At | query >/dev/null
  until_closed
  for subject in nobody few 5000000007; do
    printf '| first page of the audit log of user %s | %s |\n' "$subject" "$(timed "SELECT * FROM kavach_query_audit(user_id => '$subject', max_rows => 50)")"
  done
  for subject in nobody few tenant_7; do
    printf '| first page of the audit log of tenant %s | %s |\n' "$subject" "$(timed "SELECT * FROM kavach_query_audit(tenant_id => '$subject', max_rows => 50)")"
  done
  printf '| kavach.budget_status | %s |\n' "$(timed "SELECT * FROM kavach.budget_status")"
}

# once SQL…: ms of each, in a session of its own.
once() {
  {
    printf '\\timing on\n'
    printf '%s \\g /dev/null\n' "$@"
  } | query | awk '/^Time:/ { print $2 }'
}

scale_restart() {
  local calls=() i times
  restart
  for i in {1..40}; do
    calls+=("SELECT * FROM kavach_authorize('$((4000000000 + i))', 'execute', 'mcp:openai:chat', tokens_cost => 150)")
  done
  mapfile -t times < <(once "${calls[@]}")
  printf '| first call after a restart | %s |\n' "${times[0]}"
  printf '| first call of each other user, median and longest of 39 | %s, %s |\n' \
    "$(printf '%s\n' "${times[@]:1}" | sort -n | sed -n 20p)" "$(printf '%s\n' "${times[@]:1}" | sort -n | tail -n 1)"
  for i in 3000 100; do
    restart
    printf '| calls of 8 clients in %s s after a restart, statement_timeout %s ms | %s |\n' "$duration" "$i" "$(calls_at_once "$i")"
  done
}

restart() {
  (cd / && as_server "$(bindir)/pg_ctl" -D "$folder/data" -l "$folder/server.log" -m fast -w restart >/dev/null </dev/null)
}

# calls_at_once TIMEOUT: how many there were, or that one failed.
calls_at_once() {
  options="-c statement_timeout=$1"
  runs=$((runs + 1))
  cat bench/call.pgbench bench/authorize.pgbench >"$folder/$section/script"
  PGOPTIONS=$options "$(bindir)/pgbench" -n -M prepared -c 8 -j 2 -T "$duration" -h "$folder" -U postgres -f "$folder/$section/script" \
    -D call=1000 -D agents=1000 -D action=execute -D resource=mcp:openai:chat -D tenant=tenant_1 \
    -D tokens=150 -D spent=134 -D run="$runs" "$database" >"$folder/$section/out" 2>&1 &&
    sed -n 's/^number of transactions actually processed: //p' "$folder/$section/out" ||
    echo "failed: $(grep -m 1 ERROR "$folder/$section/out")"
  options=
}

scale_size() {
  local month
  month=$(query -At -c "SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'kavach.audit_log'::regclass ORDER BY pg_relation_size(inhrelid) DESC LIMIT 1")
  query -c "CREATE TABLE bench.plain AS SELECT * FROM $month"
  printf '| a month of the ledger with its indexes ÷ a plain table of the same rows | %s |\n' \
    "$(query -At -c "SELECT round(pg_total_relation_size('$month')::numeric / pg_total_relation_size('bench.plain'), 2)")"
  printf '| rollups, bytes for each row of the ledger | %s |\n' \
    "$(query -At -c "SELECT round(sum(pg_total_relation_size(c))::numeric / $scale_rows, 1) FROM unnest(ARRAY['kavach.usage_daily', 'kavach.usage_monthly', 'kavach.usage_total', 'kavach.usage_scope', 'kavach.batch', 'kavach.open_authorization']::regclass[]) c")"
}

# Of 11,000 agents, each of which has a limit of its own.
scale_statuses() {
  use_database after 11000 4
  query -c "SELECT count(kavach_authorize(agent_id, 'execute', 'mcp:openai:chat', tokens_cost => 150)) FROM kavach.agent" >/dev/null
  until_closed
  printf '| kavach.budget_status, each of 11,000 agents | %s ms |\n' "$(timed "SELECT * FROM kavach.budget_status")" | tee -a "$results"
}

scale_worker() {
  begin "10,000 agents, batches closed meanwhile or not" 10000 4
  options=$relaxed
  contend held authorize 8
  contend closing authorize 8
  contend held_again authorize 8
  interval=([held]=1h [held_again]=1h [closing]=default)
  compare
  finish
}

# set_interval INTERVAL: of batches; with what was left open closed first.
set_interval() {
  if [[ $1 == default ]]; then
    query -c "ALTER SYSTEM RESET kavach.batch_interval"
  else
    query -c "ALTER SYSTEM SET kavach.batch_interval = '$1'"
  fi
  query -c "SELECT pg_reload_conf()" -c "SELECT kavach.close_batches()" >/dev/null
}

# ---- instructions ----

# Of what goes on inside of the function: no parser, plan, protocol nor commit.
part_instructions() {
  local name
  scripts/setup.sh valgrind
  compile callgrind
  serve
  begin "instructions of a call" 100 4 20000 12
  use_database months 100 4 20000 60
  constraints='{"max_calls_per_hour": 1000000000}' use_database rate 100 4 20000 12
  constraints=$(usual_constraints) use_database constraints 100 4 20000 12
  for name in before months rate constraints; do
    database=bench_${section}_$name query -c "VACUUM ANALYZE" -c "
      CREATE FUNCTION bench.forget_instructions()
      RETURNS boolean LANGUAGE c AS '$folder/callgrind', 'bench_forget_instructions'"
  done
  serve_under_callgrind
  {
    printf '\n### Instructions of a call, inside of the function\n\n'
    printf '| | 12 earlier months | 60 |\n| --- | --: | --: |\n'
    count_row "authorize" authorize before months
    count_row "authorize with request_id" authorize_request before months
    count_row "record_usage by request_id" usage_request before months
    count_row "authorize, of a permission with a rate per hour" authorize rate
    count_row "authorize with arguments and ip" authorize_arguments before
    count_row "the same, of a permission with constraints on both and a time_window" authorize_arguments constraints
  } | tee -a "$results"
  rm -rf "${folder:?}/$section"
}

# They hold now, and for hours.
usual_constraints() {
  date -u -d '-6 hours' '+{"allowed_arg_patterns": ["*@example.com"], "ip_allowlist": ["10.0.0.0/8"],
    "time_window": {"start": "%H:%M", "end": "'"$(date -u -d '+6 hours' +%H:%M)"'"}}'
}

serve_under_callgrind() {
  local wrapper=$folder/postgres
  stop_server "$folder"
  as_server mkdir "$folder/callgrind"
  printf '#!/bin/bash\nexec valgrind -q --tool=callgrind --callgrind-out-file="%s/%%p" %s %s "%s" "$@"\n' \
    "$folder/callgrind" --toggle-collect=kavach_authorize --toggle-collect=kavach_record_usage \
    "$(bindir)/postgres" >"$wrapper"
  chmod 755 "$wrapper"
  (
    cd "$folder" || exit
    as_server "$(bindir)/pg_ctl" -D "$folder/data" -l "$folder/server.log" -p "$wrapper" -t 300 -w start \
      >/dev/null </dev/null || die "no server under callgrind: $(tail -n 20 "$folder/server.log")"
  )
}

# count_row TITLE SCRIPT, and the databases
count_row() {
  local database figure
  printf '| %s |' "$1"
  for database in "${@:3}"; do
    runs=$((runs + 1))
    figure=$(instructions "$2" "bench_${section}_$database")
    printf ' %s |' "$figure"
  done
  [[ $# -gt 3 ]] || printf ' |'
  printf '\n'
}

# instructions SCRIPT DATABASE: of a warm call.  Usage has been authorized in a session before,
# with the same requests of the same agents.
instructions() {
  [[ $1 != usage_request ]] || counted_session authorize_request "$2" >/dev/null
  counted_session "$@"
}

counted_session() {
  local warm=40 counted=100 out=$folder/$section/out
  find "$folder/callgrind" -type f -delete
  cat bench/call.pgbench "bench/$1.pgbench" bench/forget.pgbench >"$folder/$section/script"
  PGOPTIONS=$relaxed "$(bindir)/pgbench" -n -M prepared -c 1 -t $((warm + counted)) --random-seed=1 \
    -h "$folder" -U postgres -f "$folder/$section/script" \
    -D call=0 -D agents=10 -D action=execute -D resource=mcp:openai:chat -D tenant=tenant_1 \
    -D tokens=150 -D spent=134 -D run="$runs" -D warm=$warm "$2" >"$out" 2>&1 ||
    die "$1 broke off: $(cat "$out")"
  wait_until 60 collected_some >/dev/null || die "callgrind has counted nothing of $1"
  echo $(($(collected_some) / counted))
}

# A session's file is complete with its last line, the totals; others' are 0.
collected_some() {
  cat "$folder"/callgrind/* 2>/dev/null | awk '/^totals:/ { sum += $2 } END { printf "%.0f\n", sum; exit sum == 0 }'
}

# ---- a comparison ----

query() {
  "$(bindir)/psql" -X -q -v ON_ERROR_STOP=1 -h "$folder" -U postgres -d "$database" "$@"
}

# begin TITLE AGENTS POLICIES [ROWS [MONTHS]]
begin() {
  section=$((section + 1))
  heading=$1
  contenders=()
  options=
  rows_each=1
  series=
  constraints='{}'
  users=100 tenants=1
  declare -gA pid=() sessions=() reference=() companion=() cold=() interval=()
  mkdir "$folder/$section"
  say "$heading"
  use_database before "${@:2}"
}

# use_database NAME AGENTS POLICIES [ROWS [MONTHS]]: what contends from here on, does it there.
use_database() {
  agents=$2
  database=postgres query -c "CREATE DATABASE bench_${section}_$1"
  database=bench_${section}_$1
  if [[ ${4:-0} -gt 0 ]]; then
    query -c "ALTER DATABASE $database SET client_min_messages = warning"
  fi
  query -v agents="$2" -v policies="$3" -v rows="${4:-0}" -v months="${5:-0}" -v constraints="$constraints" \
    -v users="$users" -v tenants="$tenants" -v library="$folder/uuid7.so" -f bench/setup.sql
  query -c "VACUUM ANALYZE kavach.agent, kavach.permission, kavach.budget_policy, kavach.budget_limit"
}

# contend NAME SCRIPT CLIENTS [AGENTS]: a contender, warmed up and stopped.
contend() {
  local name=$1 count=${4:-$agents}
  cat bench/call.pgbench "bench/$2.pgbench" >"$folder/$section/$name.script"
  start_pgbench "$name" "$3" "$count" 0 1000000
  until is_warm "$name" "$3" "$count"; do
    kill -0 "${pid[$name]}" 2>/dev/null || die "$name broke off: $(cat "$folder/$section/$name.out")"
    sleep 0.5
  done
  kill -STOP "${pid[$name]}"
  sessions[$name]=$(query -At -c "SELECT pid FROM pg_stat_activity WHERE application_name = '$name'")
  [[ $name == neighbour ]] || contenders+=("$name")
  reference[$name]=${contenders[0]}
}

# contend_cold NAME SCRIPT CLIENTS: a contender that connects at each turn.
contend_cold() {
  cat bench/call.pgbench "bench/$2.pgbench" >"$folder/$section/$1.script"
  cold[$1]=$3
  contenders+=("$1")
  reference[$1]=${contenders[0]}
}

# start_pgbench NAME CLIENTS AGENTS CALL SECONDS: it goes on from that call (call.pgbench).
start_pgbench() {
  local name=$1 threads=$2
  [[ $threads -lt $(nproc) ]] || threads=$(nproc)
  runs=$((runs + 1))
  PGAPPNAME=$name PGOPTIONS=$options "$(bindir)/pgbench" -n -M prepared -c "$2" -j "$threads" -T "$5" \
    -h "$folder" -U postgres -f "$folder/$section/$name.script" --log --log-prefix="$folder/$section/$name" \
    -D call="$4" -D agents="$3" -D action=execute -D resource=mcp:openai:chat -D tenant=tenant_1 \
    -D tokens=150 -D spent=134 -D run="$runs" "$database" >"$folder/$section/$name.out" 2>&1 &
  pid[$name]=$!
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
      if [[ -n ${cold[$name]:-} ]]; then
        take_cold_turn "$name" "$round"
      else
        take_turn "$name" "$round"
      fi
    done
  done
}

# A line of "turns": contender, round, begin and end, CPU seconds of its backends.
take_turn() {
  local name=$1 from to cpu process
  local processes=("${pid[$name]}")
  [[ -z ${companion[$name]:-} ]] || processes+=("${pid[${companion[$name]}]}")
  [[ -z ${interval[$name]:-} ]] || set_interval "${interval[$name]}"
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

# It begins with the first call, when all have connected.
take_cold_turn() {
  local name=$1 cpu process
  query -c CHECKPOINT
  cpu=$(cpu_time_of_ended)
  start_pgbench "$name" "${cold[$name]}" "$agents" "$agents" "$duration"
  process=${pid[$name]}
  wait "$process" || die "$name broke off: $(cat "$folder/$section/$name.out")"
  unset "pid[$name]"
  wait_until 60 has_left "$name" || die "sessions of $name do not end"
  cpu=$(($(cpu_time_of_ended) - cpu))
  awk -v turn="$name $2" -v seconds="$duration" -v cpu="$cpu" '
    { begun = $5 + ($6 - $3) / 1000000; if (!from || begun < from) from = begun }
    END { printf "%s %.6f %.6f %s\n", turn, from, from + seconds, cpu }' \
    "$folder/$section/$name.$process"* >>"$folder/$section/turns"
}

has_left() {
  [[ $(query -At -c "SELECT count(*) FROM pg_stat_activity WHERE application_name = '$1'") -eq 0 ]]
}

# Nanoseconds that all backends which have ended by now have spent on a CPU.
cpu_time_of_ended() {
  awk -v ticks="$(getconf CLK_TCK)" '{ printf "%.0f", ($16 + $17) * 1000000000 / ticks }' \
    "/proc/$(head -n 1 "$folder/data/postmaster.pid")/stat"
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
    WITH k AS (SELECT DISTINCT to_jsonb(a) - '{id,ts,batch,settles,request_id}'::text[], settles IS NULL, request_id IS NULL
                 FROM kavach.audit_log a WHERE agent_id = '4000000042'),
         b AS (SELECT DISTINCT to_jsonb(a) - '{id,ts,batch,settles,request_id}'::text[], settles IS NULL, request_id IS NULL
                 FROM bench.audit_log a WHERE agent_id = '4000000042')
    SELECT EXISTS (TABLE k) AND NOT EXISTS (TABLE k EXCEPT TABLE b) AND NOT EXISTS (TABLE b EXCEPT TABLE k)")
  [[ $same == t ]] || die "the INSERT does not write the row that the call writes"
}

# end_contenders [SIGNAL]: ALRM is what ends a pgbench in time, so that it completes its log.
end_contenders() {
  local process
  for process in "${pid[@]}"; do
    kill "-${1:-TERM}" "$process" 2>/dev/null || true
    kill -CONT "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  pid=()
}

finish() {
  local name
  end_contenders ALRM
  for name in "${contenders[@]}"; do
    printf '%s\t%s\t%s\n' "$name" "${reference[$name]}" "${title[$name]}"
  done >"$folder/$section/contenders"
  {
    printf '\n### %s\n\n' "${heading^}"
    awk -v calls="$rows_each" -v series="$series" -f bench/report.awk "$folder/$section/contenders" "$folder/$section/turns" \
      "$folder/$section"/*.[0-9]*
  } | tee -a "$results"
  leave
}

leave() {
  local name
  end_contenders
  rm -rf "${folder:?}/$section"
  for name in before after; do
    database=postgres query -c "DROP DATABASE IF EXISTS bench_${section}_$name (FORCE)"
  done 2>/dev/null
}

main
