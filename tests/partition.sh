#!/usr/bin/env bash
# A primary and two replicas, each in a network namespace of its own. The primary is parted from everybody and lives on
# while a replica is promoted; then it is back; then a replica is parted. Needs root, ip, the release binary (make build) and
# PostgreSQL's programs. Everything it makes is removed. Prints what it measured, and fails where something is not as it
# should be.
set -euo pipefail
cd "$(dirname "$0")/.."

pgweir=${PGWEIR:-target/release/pgweir}
bin=${PGWEIR_PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)}
folder=$(mktemp -d)
chown postgres "$folder"
names=(a b c)

# The namespace of a server, its address to pgweir, and a command as its user in there.
space() { echo "pgweir-$$-$1"; }
address() { case $1 in a) echo 198.51.100.2 ;; b) echo 198.51.100.6 ;; c) echo 198.51.100.10 ;; esac; }
here() { case $1 in a) echo 198.51.100.1 ;; b) echo 198.51.100.5 ;; c) echo 198.51.100.9 ;; esac; }
as_server() { local name=$1; shift; ip netns exec "$(space "$name")" setpriv --reuid postgres --regid postgres --init-groups "$@"; }
sql() { as_server "$1" "$bin/psql" -qAt -h "$folder" -p "$(port "$1")" -U postgres -d postgres -c "$2"; }
port() { case $1 in a) echo 5432 ;; b) echo 5433 ;; c) echo 5434 ;; esac; }

finish() {
  [ -n "${pgweir_pid:-}" ] && kill "$pgweir_pid" 2>/dev/null && wait "$pgweir_pid" || true
  for name in "${names[@]}"; do
    as_server "$name" "$bin/pg_ctl" -D "$folder/$name" -m immediate stop >/dev/null 2>&1 || true
    ip netns del "$(space "$name")" 2>/dev/null || true
    ip link del "pw$$$name" 2>/dev/null || true
  done
  rm -rf "$folder"
}
trap finish EXIT
fail() { echo "$1" >&2; tail -n 20 "$folder/pgweir.log" >&2; exit 1; }
# Waits up to 30 s for a command to succeed.
until_true() {
  local what=$1 waited=0
  shift
  until "$@"; do
    sleep 0.05
    if [ "$((waited += 1))" -gt 600 ]; then fail "waited 30 s in vain: $what"; fi
  done
}

for name in "${names[@]}"; do
  ip netns add "$(space "$name")"
  ip -n "$(space "$name")" link set lo up
  ip link add "pw$$$name" type veth peer name outer netns "$(space "$name")"
  ip addr add "$(here "$name")/30" dev "pw$$$name" && ip link set "pw$$$name" up
  ip -n "$(space "$name")" addr add "$(address "$name")/30" dev outer && ip -n "$(space "$name")" link set outer up
done
# What replicas stream over: from a to b, and from b to c.
join() {
  ip -n "$(space "$1")" link add "to$2" type veth peer name "to$1" netns "$(space "$2")"
  ip -n "$(space "$1")" addr add "$3/30" dev "to$2" && ip -n "$(space "$1")" link set "to$2" up
  ip -n "$(space "$2")" addr add "$4/30" dev "to$1" && ip -n "$(space "$2")" link set "to$1" up
}
join a b 203.0.113.1 203.0.113.2
join b c 203.0.113.5 203.0.113.6

start() {
  as_server "$1" "$bin/pg_ctl" -D "$folder/$1" -l "$folder/$1.log" -w \
    -o "-p $(port "$1") -k $folder -c listen_addresses=* -c fsync=off -c wal_receiver_timeout=5s" start >/dev/null
}
clone() {
  as_server "$1" "$bin/pg_basebackup" -D "$folder/$1" -R -X stream -c fast -h "$2" -p "$3" -U postgres
  start "$1"
}
as_server a "$bin/initdb" -D "$folder/a" -U postgres -A trust --no-sync >/dev/null
printf 'host %s all samenet trust\n' all replication >>"$folder/a/pg_hba.conf"
start a
sql a 'CREATE TABLE written (who text)'
clone b 203.0.113.1 5432
clone c 203.0.113.5 5433

urls=()
for name in "${names[@]}"; do urls+=("postgres://$(address "$name"):$(port "$name")"); done
"$pgweir" run --primary "${urls[0]}" --replica "${urls[1]}" --replica "${urls[2]}" --listen 127.0.0.1:0 --http off --auth trust \
  --pool-size 4 --set cluster.probe_interval=200ms --set cluster.probe_timeout=500ms --set cluster.down_after=2 \
  2>"$folder/pgweir.log" &
pgweir_pid=$!
listens() { listening=$(sed -n 's/.* listening on 127.0.0.1:\([0-9]*\).*/\1/p' "$folder/pgweir.log" | head -n 1); [ -n "$listening" ]; }
until_true "pgweir to listen" listens
export PGHOST=127.0.0.1 PGPORT=$listening PGUSER=postgres PGDATABASE=postgres PGCONNECT_TIMEOUT=20
ask() { "$bin/psql" -qAt -v VERBOSITY=verbose -c "$1" 2>&1; }
now() { date +%s%N | cut -c1-13; }
state() { "$bin/psql" -At -F ' ' -d pgweir -c 'SHOW NODES' | awk -v node="$(address "$1"):$(port "$1")" '$1 == node { print $3 }'; }
is() { [ "$(state "$1")" = "$2" ]; }
for name in "${names[@]}"; do until_true "$name to be up" is "$name" up; done

# The primary is parted: a client in a transaction is told, one outside waits and is served by whoever is promoted.
{ echo "BEGIN; INSERT INTO written VALUES ('inside');"; until [ -e "$folder/go" ]; do sleep 0.05; done; echo "COMMIT;"; } |
  "$bin/psql" -qAt -v VERBOSITY=verbose >"$folder/inside" 2>&1 &
inside=$!
writes() { [ "$(sql a "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE 'INSERT%'")" = 1 ]; }
until_true "a client in a transaction" writes
begun=$(now)
ip -n "$(space a)" link set outer down
ip -n "$(space a)" link set tob down
ask "INSERT INTO written VALUES ('held')" >"$folder/held" &
held=$!
until_true "the primary to be down" is a down
echo "found down after $(($(now) - begun)) ms"
sql b 'SELECT pg_promote(false)' >/dev/null
touch "$folder/go"
wait "$held" || fail "a statement outside a transaction failed: $(cat "$folder/held")"
echo "a statement that waited ran $(($(now) - begun)) ms after the primary was parted"
wait "$inside" || true
grep -qE '0800[67]' "$folder/inside" || fail "a client in a transaction was not told: $(cat "$folder/inside")"
echo "a client in a transaction was told within $(($(now) - begun)) ms: $(grep -o '0800.*' "$folder/inside" | head -n 1)"
# The old one takes writes of those on its side all the while.
sql a "INSERT INTO written VALUES ('aside')"
for _ in $(seq 20); do ask "INSERT INTO written VALUES ('after')" >/dev/null; done

# Packets that wait for the address to be resolved, for 3 s, are the kernel's: closing a connection takes none of them back.
ip neigh flush dev "pw$$a"
ip -n "$(space a)" link set outer up
ip -n "$(space a)" link set tob up
begun=$(now)
until_true "the old primary to be fenced" is a fenced
echo "the old primary is fenced $(($(now) - begun)) ms after it is back"
grep -q 'TWO PRIMARIES' "$folder/pgweir.log" || fail "nothing in the log"
for _ in $(seq 20); do ask "INSERT INTO written VALUES ('after')" >/dev/null; done
on_old=$(sql a "SELECT string_agg(DISTINCT who, ' ') FROM written")
on_new=$(sql b "SELECT count(*) || ' ' || string_agg(DISTINCT who, ' ' ORDER BY who) FROM written")
echo "rows on the old primary: $on_old; on the new one: $on_new"
[ "$on_old" = aside ] || fail "the old primary has been given something"
[ "$on_new" = "41 after held" ] || fail "expected 40 rows 'after' and one 'held'"

# A replica is parted: reads go on, none fails.
until_true "the replica to follow" is c up
ip -n "$(space c)" link set outer down
begun=$(now) longest=0
while ! is c down; do
  read_begun=$(now)
  [ "$(ask 'SELECT count(*) FROM written')" = 41 ] || fail "a read failed"
  took=$(($(now) - read_begun))
  if [ "$took" -gt "$longest" ]; then longest=$took; fi
  if [ "$(($(now) - begun))" -gt 30000 ]; then fail "the replica is not found down"; fi
done
echo "a parted replica is found down after $(($(now) - begun)) ms; the longest of the reads meanwhile took $longest ms"
ip -n "$(space c)" link set outer up
until_true "the replica to be back" is c up
echo "and is up again"

# What was sent to the old primary while it was parted, a COMMIT, has not come to it in the meantime.
on_old=$(sql a "SELECT string_agg(DISTINCT who, ' ') FROM written")
[ "$on_old" = aside ] || fail "the old primary has been given something late: $on_old"
