#!/usr/bin/env bash
# A server in a network namespace of its own, behind a link that is slow and lossy, where the kernel has tc's netem, and
# then dead. Needs root, ip, tc, the release binary (make build) and PostgreSQL's programs. Everything it makes is removed.
set -euo pipefail
cd "$(dirname "$0")/.."

pgweir=${PGWEIR:-target/release/pgweir}
bin=${PGWEIR_PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)}
space=pgweir-$$
inner=pw$$i outer=pw$$o
server=198.51.100.2 here=198.51.100.1
folder=$(mktemp -d)
chown postgres "$folder"
as_server=(ip netns exec "$space" setpriv --reuid postgres --regid postgres --init-groups)

finish() {
  [ -n "${pgweir_pid:-}" ] && kill "$pgweir_pid" 2>/dev/null && wait "$pgweir_pid" || true
  "${as_server[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true
  ip netns del "$space" 2>/dev/null || true
  ip link del "$outer" 2>/dev/null || true
  rm -rf "$folder"
}
trap finish EXIT

ip netns add "$space"
ip link add "$outer" type veth peer name "$inner" netns "$space"
ip addr add "$here/30" dev "$outer" && ip link set "$outer" up
ip -n "$space" addr add "$server/30" dev "$inner" && ip -n "$space" link set "$inner" up
ip -n "$space" link set lo up

"${as_server[@]}" "$bin/initdb" -D "$folder/data" -U postgres -A trust --no-sync >/dev/null
echo "host all all $here/32 trust" >>"$folder/data/pg_hba.conf"
"${as_server[@]}" "$bin/pg_ctl" -D "$folder/data" -l "$folder/log" -w \
  -o "-p 5432 -k $folder -c listen_addresses=$server -c fsync=off -c client_connection_check_interval=1s" start >/dev/null
"${as_server[@]}" "$bin/psql" -qAt -h "$folder" -U postgres -c 'CREATE ROLE app SUPERUSER LOGIN'

"$pgweir" run --primary "postgres://$server:5432" --listen 127.0.0.1:0 --http off --auth trust --pool-size 4 \
  --set timeouts.query_timeout=1s --set timeouts.cancel_wait_timeout=1s --set timeouts.server_connect_timeout=1s \
  --set timeouts.query_wait_timeout=3s 2>"$folder/pgweir.log" &
pgweir_pid=$!
for _ in $(seq 200); do
  port=$(sed -n 's/.*listening on 127.0.0.1:\([0-9]*\).*/\1/p' "$folder/pgweir.log" | head -n 1)
  [ -n "$port" ] && break
  sleep 0.05
done
export PGHOST=127.0.0.1 PGPORT=$port PGUSER=app PGDATABASE=postgres PGCONNECT_TIMEOUT=20
# Each text is a request of its own.
ask() { "$bin/psql" -qAt -v VERBOSITY=verbose "${@/#/-c}" 2>&1; }
now() { date +%s%N | cut -c1-13; }

way="no netem in this kernel"
if tc qdisc replace dev "$outer" root netem delay 20ms 5ms loss 2% 2>/dev/null; then way="20 ms of delay, 2 % lost"; fi
"$bin/pgbench" -i -q -s 1 2>/dev/null
output=$("$bin/pgbench" -n -S -c 8 -T 5 2>&1)
if grep -qE 'aborted|error:' <<<"$output"; then echo "$output"; exit 1; fi
tc qdisc del dev "$outer" root 2>/dev/null || true
echo "$way: $(sed -n 's/number of transactions actually processed: //p' <<<"$output") transactions, no error"

# The link dies while statements run, in and outside transactions, on all connections of the pool: everyone is told, nobody
# waits for ever.
for begin in "" BEGIN "" BEGIN; do
  ( begun=$(now); answer=$(ask ${begin:+"$begin"} "SELECT pg_sleep(600)" || true); echo "$(($(now) - begun)) ms: $(head -n 1 <<<"$answer")" ) >>"$folder/told" &
done
sleep 0.5
ip -n "$space" link set "$inner" down
while [ "$(wc -l <"$folder/told")" -lt 4 ]; do
  sleep 0.1
  if [ "$((waited = ${waited:-0} + 1))" -gt 300 ]; then echo "somebody waits for ever"; exit 1; fi
done
echo "the link dies amid statements (query_timeout 1s, cancel_wait_timeout 1s):"
sed 's/^/  /' "$folder/told"
if grep -v 57014 "$folder/told"; then echo "expected 57014"; exit 1; fi
begun=$(now)
answer=$(ask "SELECT 1" || true)
echo "a statement while it is dead: $(($(now) - begun)) ms: $(head -n 1 <<<"$answer")"
# On a connection that was idle when the link died, or in vain for a new one.
grep -qE '53300|57014' <<<"$answer"
# It comes back.
ip -n "$space" link set "$inner" up
begun=$(now)
until [ "$(ask 'SELECT 1' || true)" = 1 ]; do
  if [ "$(($(now) - begun))" -gt 20000 ]; then echo "the server is not used again"; exit 1; fi
done
echo "back after $(($(now) - begun)) ms"
# What was given up is closed on the server too, as soon as it hears of it.
count="SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'"
for _ in $(seq 600); do
  backends=$("${as_server[@]}" "$bin/psql" -qAt -h "$folder" -p 5432 -U postgres -d postgres -c "$count")
  [ "$backends" -le 4 ] && break
  sleep 0.1
done
echo "$backends backends on the server, of a pool of 4"
[ "$backends" -le 4 ]
