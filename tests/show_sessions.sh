# Read by show.sh: sessions through pgweir are those of a direct connection. dump | apps | migrations

python=tests/.venv/bin/python

# What the two commands print, or leave in the files that they name, is the same.
same() { # WHAT DIRECT THROUGH
  cmp -s "$2" "$3" || { echo "$1 differs:" >&2; diff "$2" "$3" | head -20 >&2; exit 1; }
  echo "$1: the same"
}

dump() {
  "$pgweir" demo --no-load --listen 127.0.0.1:0 --http off >"$folder/demo.out" 2>"$folder/pgweir.log" &
  pgweir_pid=$!
  local through='' direct node
  for _ in $(seq 1200); do
    through=$(sed -n 's/.*The exchange: *psql //p' "$folder/demo.out")
    [ -n "$through" ] && break
    kill -0 "$pgweir_pid" || { cat "$folder/pgweir.log" >&2; exit 1; }
    sleep 0.1
  done
  node=$("$bin/psql" -XAt "${through%/*}/pgweir" -c 'SHOW NODES' | awk -F '|' '$2 == "primary" { print $1 }')
  direct=$(sed -E "s/@[^/]*/@$node/" <<<"$through")
  "$bin/psql" -XAtq "$direct" -c 'SELECT 1' >/dev/null
  # The key of \restrict is another one for each dump.
  plain() { "$bin/pg_dump" "$1" | grep -vE '^\\(un)?restrict '; }
  plain "$direct" >"$folder/direct.sql"
  plain "$through" >"$folder/through.sql"
  same "pg_dump ($(wc -l <"$folder/direct.sql") lines)" "$folder/direct.sql" "$folder/through.sql"
  "$bin/pg_dump" -Fd -j 4 -f "$folder/dump" "$through"
  echo "pg_dump -j 4: done"
  # The sample's user may not make databases.
  local owner=${through/trader@/postgres@} owner_direct=${direct/trader@/postgres@}
  "$bin/createdb" --maintenance-db "$owner" restored
  "$bin/pg_restore" -j 4 -d "${owner%/*}/restored" "$folder/dump"
  plain "${owner_direct%/*}/restored" >"$folder/restored.sql"
  same "pg_dump of what pg_restore -j 4 restored" "$folder/direct.sql" "$folder/restored.sql"
  local commands='\d \d+ \d * \dt+ \di+ \dv+ \dm+ \ds+ \df+ \da \dn+ \dp \dT+ \dD \dO \dC \dc \do \dF \dFd \dFp \dFt \dg+ \du \dx+ \dy \dRp+ \dRs+ \des \dew \det \deu \dA+ \dX \db+ \ddp \dL \dP+ \dl \l+ \drds \z \dconfig \conninfo'
  local version
  version=$("$bin/psql" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
  [ "$version" -ge 15 ] || commands=${commands/\\dconfig/}
  commands=${commands/\\conninfo/}
  sed 's/ \\/\n\\/g' <<<"$commands" >"$folder/commands"
  PGAPPNAME=psql "$bin/psql" -X -f "$folder/commands" "$direct" >"$folder/direct.d" 2>&1
  PGAPPNAME=psql "$bin/psql" -X -f "$folder/commands" "$through" >"$folder/through.d" 2>&1
  same "psql's \\d family ($(wc -l <"$folder/commands") commands, $(wc -l <"$folder/direct.d") lines)" \
    "$folder/direct.d" "$folder/through.d"
  kill -INT "$pgweir_pid" && wait "$pgweir_pid"
  pgweir_pid=
}

apps() {
  local each=$(("${CLIENTS:-200}" / 4)) rounds=${ROUNDS:-5} backends=${BACKENDS:-10}
  start_server -A trust
  start_pgweir --primary "postgres://127.0.0.1:$server_port" --pool-size "$backends" --set timeouts.query_wait_timeout=300s
  local direct=("$bin/psql" -XAtq -h 127.0.0.1 -p "$server_port" -U postgres postgres)
  "${direct[@]}" -c 'CREATE TABLE counters AS SELECT key, 0 AS value FROM generate_series(0, 4) key'
  local dsn="postgres://postgres@127.0.0.1:$port/postgres"
  local most=0 now pid failed=0 pids=()
  for app in psycopg asyncpg sqlalchemy; do
    "$python" "tests/drivers/app_$app.py" "$dsn" "$each" "$rounds" &
    pids+=($!)
  done
  NODE_PATH=tests/node_modules node tests/drivers/app_node.js "$dsn" "$each" "$rounds" &
  pids+=($!)
  while jobs -pr | grep -qxF "${pids[0]}" || jobs -pr | grep -qxF "${pids[1]}" ||
    jobs -pr | grep -qxF "${pids[2]}" || jobs -pr | grep -qxF "${pids[3]}"; do
    now=$("${direct[@]}" -c "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
    [ "$now" -le "$most" ] || most=$now
    sleep 0.2
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  [ "$failed" = 0 ] || { tail -5 "$folder/pgweir.log" >&2; exit 1; }
  local counted expected=$((4 * each * rounds))
  counted=$("${direct[@]}" -c 'SELECT sum(value) FROM counters')
  echo "under advisory locks: counted $counted of $expected; server connections: at most $most"
  [ "$counted" = "$expected" ]
  # pgweir's own connections for the listener and for probes come on top of the pool.
  [ "$most" -le $((backends + 2)) ]
  local left
  left=$("${direct[@]}" -c "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
  [ "$left" = 0 ]
}

migrations() {
  start_server -A trust
  start_pgweir --primary "postgres://127.0.0.1:$server_port" --pool-size 5
  local psql=("$bin/psql" -XAtq -h 127.0.0.1 -p "$server_port" -U postgres postgres)
  cp -r tests/drivers/migrations "$folder/migrations"
  chmod -R a+rX "$folder/migrations"
  local dsn="postgresql+psycopg://postgres@127.0.0.1:$port/postgres" pids=() pid number
  for number in 1 2 3 4; do
    MIGRATIONS_DSN=$dsn "$python" -m alembic -c "$folder/migrations/alembic.ini" upgrade head >"$folder/migration.$number" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || { cat "$folder"/migration.* >&2; exit 1; }; done
  local migrated steps
  migrated=$(grep -l 'Running upgrade' "$folder"/migration.* | wc -l)
  steps=$("${psql[@]}" -c 'SELECT count(*) FROM steps')
  echo "four at once: $migrated migrated, $steps steps done, at $("${psql[@]}" -c 'SELECT version_num FROM alembic_version')"
  [ "$migrated" = 1 ] && [ "$steps" = 3 ]
  [ "$("${psql[@]}" -c "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")" = 0 ]
}
