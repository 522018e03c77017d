#!/usr/bin/env bash
# Shows on a scratch server what the pooler is for:
# tests/show.sh pgbench | primary_alone | import | demo | page | metering | dump | apps | migrations
# Needs the release binary (make build) and PostgreSQL's programs. Everything it makes is removed.
set -euo pipefail
cd "$(dirname "$0")/.."

pgweir=${PGWEIR:-target/release/pgweir}
bin=${PGWEIR_PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)}
folder=$(mktemp -d)
as_server=()
# What pgweir is run under, if anything.
under=()
if [ "$(id -u)" = 0 ]; then
  chown postgres "$folder"
  as_server=(setpriv --reuid postgres --regid postgres --init-groups)
fi

finish() {
  [ -n "${pgweir_pid:-}" ] && kill "$pgweir_pid" 2>/dev/null && wait "$pgweir_pid" || true
  "${as_server[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true
  rm -rf "$folder"
}
trap finish EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start_server() { # ARGUMENTS of initdb
  server_port=$(free_port)
  "${as_server[@]}" "$bin/initdb" -D "$folder/data" -U postgres -E UTF8 --no-sync "$@" >/dev/null
  "${as_server[@]}" "$bin/pg_ctl" -D "$folder/data" -l "$folder/log" -w \
    -o "-p $server_port -k $folder -c listen_addresses=127.0.0.1 -c fsync=off" start >/dev/null
}

start_pgweir() { # ARGUMENTS of run
  "${under[@]}" "$pgweir" run "$@" --listen 127.0.0.1:0 --http off 2>"$folder/pgweir.log" &
  pgweir_pid=$!
  for _ in $(seq 200); do
    port=$(sed -n 's/.*listening on 127.0.0.1:\([0-9]*\).*/\1/p' "$folder/pgweir.log" | head -n 1)
    [ -n "$port" ] && return
    kill -0 "$pgweir_pid" || { cat "$folder/pgweir.log" >&2; exit 1; }
    sleep 0.05
  done
  exit 1
}

pgbench() {
  start_server -A trust
  start_pgweir --primary "postgres://127.0.0.1:$server_port" --pool-size 5
  export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres
  "$bin/createdb" -p "$server_port" bench
  "$bin/pgbench" -i -q -s 10 bench 2>/dev/null
  run() { # CLIENTS ARGUMENTS
    local output
    output=$("$bin/pgbench" -n -j 2 -T "${SECONDS_EACH:-3}" -c "$@" bench 2>&1) || { echo "$output"; exit 1; }
    if grep -qE 'aborted|error:' <<<"$output"; then echo "$output"; exit 1; fi
    echo "pgbench -c $*: $(sed -n 's/number of transactions actually processed: //p' <<<"$output") transactions, no error"
  }
  for mode in simple extended prepared; do
    run 50 -S -M "$mode"
    # pgbench prepares within a transaction and waits: with more clients than connections it locks itself out.
    if [ "$mode" = prepared ]; then run 5 -M prepared; else run 50 -M "$mode"; fi
  done
  run 50 -C -S -M simple
  run 50 -C -M simple
  local sums
  sums=$("$bin/psql" -At bench -c "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta)
    AND (SELECT sum(bbalance) FROM pgbench_branches) = sum(delta)
    AND (SELECT sum(tbalance) FROM pgbench_tellers) = sum(delta) FROM pgbench_history")
  [ "$sums" = t ]
  # Those of pgweir's own have names: one that looks at long statements, one that reads the catalogue for a moment.
  local backends own
  read -r backends own < <("$bin/psql" -At -F ' ' bench -c "SELECT
    count(*) FILTER (WHERE application_name NOT IN ('pgweir watch', 'pgweir catalogue')),
    count(*) FILTER (WHERE application_name IN ('pgweir watch', 'pgweir catalogue'))
    FROM pg_stat_activity WHERE datname = 'bench' AND backend_type = 'client backend'")
  echo "balances add up; $backends server connections of the pool, $own of pgweir's own"
  [ "$backends" -le 5 ] && [ "$own" -le 2 ]
}

primary_alone() {
  start_server -A trust
  start_pgweir --primary "postgres://127.0.0.1:$server_port"
  export PGHOST=127.0.0.1 PGUSER=postgres
  for database in one two three; do "$bin/createdb" -p "$server_port" "$database"; done
  for database in one two three postgres template1; do
    [ "$("$bin/psql" -p "$port" -At "$database" -c 'SELECT current_database()')" = "$database" ]
    echo "$database: served"
  done
}

import() {
  echo secret >"$folder/password" && chmod a+r "$folder/password"
  start_server -A scram-sha-256 --pwfile "$folder/password"
  export PGPASSWORD=secret
  cat >"$folder/pgbouncer.ini" <<INI
[databases]
app = host=127.0.0.1 port=$server_port dbname=postgres pool_size=3
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 0
auth_type = scram-sha-256
auth_file = $folder/userlist.txt
pool_mode = transaction
INI
  echo '"postgres" "secret"' >"$folder/userlist.txt"
  "$pgweir" import "$folder/pgbouncer.ini" >"$folder/pgweir.toml"
  "$pgweir" check --config "$folder/pgweir.toml"
  start_pgweir --config "$folder/pgweir.toml"
  [ "$("$bin/psql" -h 127.0.0.1 -p "$port" -U postgres -At app -c 'SELECT 42')" = 42 ]
  if PGPASSWORD=wrong "$bin/psql" -h 127.0.0.1 -p "$port" -U postgres app -c 'SELECT 1' 2>/dev/null; then exit 1; fi
  echo "imported, checked and served; a wrong password is refused"
}

# Instructions of pgweir for each statement, and how many of them count it. Repeatable where times are not.
metering() {
  local statements=${STATEMENTS:-2000} most=${INSTRUCTIONS_MAX:-1200}
  command -v valgrind >/dev/null || { echo "valgrind is missing: apt-get install valgrind" >&2; exit 1; }
  start_server -A trust
  under=(valgrind --tool=callgrind --callgrind-out-file="$folder/callgrind.out" --vgdb-prefix="$folder/vgdb")
  start_pgweir --primary "postgres://127.0.0.1:$server_port" --set general.workers=1
  export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres
  "$bin/createdb" -p "$server_port" bench
  "$bin/pgbench" -p "$server_port" -i -q -s 1 bench 2>/dev/null
  local control=(callgrind_control --vgdb-prefix="$folder/vgdb") mode
  for mode in simple prepared; do
    "$bin/pgbench" -n -S -M "$mode" -c 1 -t 200 bench >/dev/null
    "${control[@]}" --zero "$pgweir_pid" >/dev/null
    "$bin/pgbench" -n -S -M "$mode" -c 1 -t "$statements" bench >/dev/null
    "${control[@]}" --dump="$mode" "$pgweir_pid" >/dev/null
    local dump
    dump=$(ls -t "$folder"/callgrind.out.* | head -n 1)
    # A pgbench run is one session: its login is part of the total, and little of it.
    python3 - "$dump" "$mode" "$statements" "$most" <<'PYTHON'
import re, sys
path, mode, statements, most = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
total, names, counting, callee = 0, {}, {}, None
lines = iter(open(path, errors="replace"))
for line in lines:
    if found := re.match(r"c?fn=\((\d+)\)(?: (.*))?", line):
        if found[2]:
            names[found[1]] = found[2]
        if line.startswith("cfn"):
            callee = names[found[1]]
    elif line.startswith("calls="):
        # The line behind it has what the calls came to, what they called included.
        cost = int(next(lines).split()[-1])
        for name in ("run_from_here", "end_statement"):
            if name in callee:
                counting[name] = counting.get(name, 0) + cost
    elif line.startswith("totals:"):
        total = int(line.split()[1])
assert len(counting) == 2, f"not found in the profile: {counting}"
each, own = total / statements, sum(counting.values()) / statements
print(f"{mode}: {each:,.0f} instructions a statement, {own:,.0f} of them ({own / each:.1%}) to count it")
assert own <= most, f"more than {most}"
PYTHON
  done
}

page() {
  "$pgweir" demo --listen 127.0.0.1:0 --http 127.0.0.1:0 >"$folder/demo.out" 2>"$folder/pgweir.log" &
  pgweir_pid=$!
  local url=
  for _ in $(seq 1200); do
    url=$(sed -n 's/.*The live page: *//p' "$folder/demo.out")
    [ -n "$url" ] && break
    kill -0 "$pgweir_pid" || { cat "$folder/pgweir.log" >&2; exit 1; }
    sleep 0.1
  done
  # Charts of nothing would show nothing.
  sleep "${SECONDS_OF_LOAD:-180}"
  python3 tests/drivers/page_shots.py "$url" docs/screenshots
  kill -INT "$pgweir_pid" && wait "$pgweir_pid"
  pgweir_pid=
  echo "stopped"
}

demo() {
  "$pgweir" demo --listen 127.0.0.1:0 --http 127.0.0.1:0 >"$folder/demo.out" 2>"$folder/pgweir.log" &
  pgweir_pid=$!
  local dsn=
  for _ in $(seq 1200); do
    dsn=$(sed -n 's/.*The exchange: *psql //p' "$folder/demo.out")
    [ -n "$dsn" ] && break
    kill -0 "$pgweir_pid" || { cat "$folder/pgweir.log" >&2; exit 1; }
    sleep 0.1
  done
  local psql=("$bin/psql" -XAtq -v ON_ERROR_STOP=1 "$dsn")
  echo "$dsn"
  # To a variable first: grep -q closes the pipe as soon as it has found what it looks for.
  local listed
  listed=$("${psql[@]}" -c '\d')
  grep -q market_orders <<<"$listed"
  echo "\\d: $(wc -l <<<"$listed") relations"
  # Money moves in a transaction that is taken back.
  local moved
  moved=$("${psql[@]}" <<'SQL'
BEGIN;
UPDATE balances SET amount = amount + 1;
ROLLBACK;
SELECT 'rolled back';
SQL
  )
  [ "$moved" = "rolled back" ]
  echo "a transaction: $moved"
  "${psql[@]}" -c '\copy (SELECT * FROM assets) TO STDOUT' >"$folder/assets"
  printf 'CREATE TEMP TABLE copied (LIKE assets);\n\\copy copied FROM %s\nSELECT count(*) FROM copied;\n' \
    "$folder/assets" >"$folder/copy.sql"
  local copied
  copied=$("${psql[@]}" -f "$folder/copy.sql")
  [ "$copied" = "$(wc -l <"$folder/assets")" ]
  echo "COPY out and in: $copied rows"
  local watched
  watched=$(timeout -s INT 2 "${psql[@]}" -f <(printf 'SELECT 1 \\watch 0.2\n') || true)
  [ "$(grep -c 1 <<<"$watched")" -ge 3 ]
  echo "\\watch: $(grep -c 1 <<<"$watched") times"
  # Ctrl-C: psql sends a cancel request, and says what the server answered.
  local canceled
  canceled=$(timeout -s INT 1 "${psql[@]}" -c 'SELECT pg_sleep(600)' 2>&1 || true)
  grep -q 'canceling statement due to user request' <<<"$canceled"
  echo "Ctrl-C: ${canceled##*ERROR:  }"
  # All that can be seen of the load: some of it comes every 20 seconds only.
  local console=("$bin/psql" -XAtq -v ON_ERROR_STOP=1 "${dsn%/*}/pgweir") show rows
  sed -n 's/^  \(SHOW [A-Z]*[^;]*;\).*/\1/p' "$folder/demo.out" >"$folder/shows"
  [ "$(wc -l <"$folder/shows")" -ge 9 ]
  while read -r show; do
    for _ in $(seq 300); do
      rows=$("${console[@]}" -c "$show")
      [ -n "$rows" ] && break
      sleep 0.2
    done
    [ -n "$rows" ] || { echo "$show shows nothing" >&2; exit 1; }
    echo "$show $(wc -l <<<"$rows") lines, the first: $(head -n 1 <<<"$rows" | cut -c -100)"
  done <"$folder/shows"
  local log
  for log in "Slow log" "Query log"; do
    file=$(sed -n "s/^  $log: *\([^ ]*\).*/\1/p" "$folder/demo.out")
    [ -s "$file" ] || { echo "nothing in $file" >&2; exit 1; }
    echo "$log: $(wc -l <"$file") lines, the last: $(tail -n 1 "$file" | cut -c -100)"
  done
  python3 - "$(sed -n 's/.*The live page: *//p' "$folder/demo.out")" <<'PYTHON'
import json, sys, urllib.request
def get(path):
    return urllib.request.urlopen(sys.argv[1] + path, timeout=10).read().decode()
now = json.loads(get("api/now"))
empty = [part for part in ("pools", "nodes", "pins", "errors", "slow", "advice") if not json.loads(get("api/" + part))]
assert not empty, f"the page has nothing under {empty}"
families = {line.split()[2] for line in get("metrics").splitlines() if line.startswith("# TYPE pgweir_")}
assert len(families) > 30, families
print(f"the page: every part has something to show, {len(now)} of them; /metrics: {len(families)} families")
PYTHON
  kill -INT "$pgweir_pid" && wait "$pgweir_pid"
  pgweir_pid=
  echo "stopped"
}

. tests/show_sessions.sh

"$@"
