#!/usr/bin/env bash
# PostgreSQL's own regression suite, direct and through pgweir, outputs compared.
#
#   tests/conformance.sh            fetch and build the suite if need be, run it twice, compare
#   tests/conformance.sh setup      only fetch and build
#
# The suite comes from Debian's source package of the installed PostgreSQL (or the nearest version of it that Debian
# has: outputs are compared with a direct run, not with the expected files). Each run has a fresh cluster, because the
# suite leaves roles, tablespaces and subscriptions behind. Exits 1 if a test differs that docs/conformance.md
# does not explain.
#
#   REGRESS      where the suite and the outputs are          (default: target/conformance)
#   PGWEIR       the binary to test                           (default: target/release/pgweir)
#   POOL_SIZE    server connections of pgweir's pool          (default: 20)
#   PGWEIR_PG_BIN, LIMIT (seconds for one run), DIRECT=keep (compare with the direct run made before)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
REGRESS=${REGRESS:-$root/target/conformance}
PGWEIR=${PGWEIR:-$root/target/release/pgweir}
POOL_SIZE=${POOL_SIZE:-20}
LIMIT=${LIMIT:-600}

fail() {
  echo "conformance: $*" >&2
  exit 1
}

find_postgres() {
  local newest
  newest=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1 || true)
  BIN=${PGWEIR_PG_BIN:-$newest}
  [[ -x $BIN/initdb ]] || fail "PostgreSQL's programs were not found: install postgresql, or set PGWEIR_PG_BIN"
  MAJOR=$("$BIN/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
}

as_root() {
  if [[ $(id -u) -eq 0 ]]; then "$@"; else sudo "$@"; fi
}

# PostgreSQL refuses to run as root.
as_server() {
  if [[ $(id -u) -eq 0 ]]; then runuser -u postgres -- "$@"; else "$@"; fi
}

# The versions of the source package that apt knows, newest first.
versions() {
  apt-cache showsrc "postgresql-$MAJOR" 2>/dev/null | sed -n 's/^Version: //p' | sort -rVu
}

source_package() {
  if [[ -z $(versions) && -f /etc/apt/sources.list.d/debian.sources ]]; then
    sed 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources |
      as_root tee /etc/apt/sources.list.d/pgweir-conformance.sources >/dev/null
    as_root apt-get update -qq
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    build-essential bison flex libicu-dev zlib1g-dev pkg-config dpkg-dev >/dev/null
  local version
  for version in $(versions); do
    apt-get source -qq --download-only "postgresql-$MAJOR=$version" && return
  done
  fail "apt has no source of postgresql-$MAJOR: add a deb-src line to apt's sources"
}

setup() {
  [[ -x $REGRESS/suite/pg_regress ]] && return
  echo "fetching and building PostgreSQL $MAJOR's regression suite ..."
  mkdir -p "$REGRESS/src"
  cd "$REGRESS/src"
  source_package
  tar xf postgresql-*.orig.tar.bz2 --strip-components=1
  {
    ./configure --without-readline --with-icu
    make -j"$(nproc)" -C src/backend generated-headers
    make -j"$(nproc)" -C src/port
    make -j"$(nproc)" -C src/common
    make -j"$(nproc)" -C src/test/regress all
  } >build.log 2>&1 || fail "the suite could not be built, see $REGRESS/src/build.log"
  cp -r src/test/regress "$REGRESS/suite"
  cd "$root"
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

cluster='' pgweir_pid='' work=''

stop() {
  if [[ -n $pgweir_pid ]]; then
    kill -KILL "$pgweir_pid" 2>/dev/null || true
    wait "$pgweir_pid" 2>/dev/null || true
    pgweir_pid=''
  fi
  if [[ -n $cluster ]]; then
    as_server "$BIN/pg_ctl" -D "$cluster/data" -m immediate stop >/dev/null 2>&1 || true
    cluster=''
  fi
}

finish() {
  stop
  [[ -z $work ]] || rm -rf "$work"
}
trap finish EXIT

start_cluster() { # NAME PORT
  cluster=$work/$1
  as_server mkdir "$cluster"
  as_server "$BIN/initdb" -D "$cluster/data" -A trust -U postgres -E UTF8 --locale=C --no-sync >/dev/null
  as_server tee -a "$cluster/data/postgresql.conf" >/dev/null <<SETTINGS
port = $2
listen_addresses = '127.0.0.1'
unix_socket_directories = '$cluster'
max_connections = 200
max_prepared_transactions = 10
wal_level = logical
fsync = off
log_min_messages = warning
SETTINGS
  as_server "$BIN/pg_ctl" -D "$cluster/data" -l "$cluster/log" -w start >/dev/null ||
    fail "the cluster did not start, see $cluster/log"
}

start_pgweir() { # PRIMARY_PORT
  local log=$REGRESS/pgweir.log
  port=$(free_port)
  "$PGWEIR" run --primary "postgres://127.0.0.1:$1" --listen "127.0.0.1:$port" --http off --auth trust \
    --pool-size "$POOL_SIZE" >"$log" 2>&1 &
  pgweir_pid=$!
  for _ in $(seq 100); do
    "$BIN/pg_isready" -q -h 127.0.0.1 -p "$port" && return
    kill -0 "$pgweir_pid" 2>/dev/null || break
    sleep 0.1
  done
  fail "pgweir did not start, see $log"
}

run_suite() { # NAME PORT
  # The same path for every run, since it appears in outputs. The server's user writes there too.
  local out=$work/run
  (
    umask 000
    mkdir -p "$out/results" "$out/testtablespace"
    cd "$work/suite"
    PGSSLMODE=disable timeout "$LIMIT" ./pg_regress --inputdir=. --outputdir="$out" --dlpath="$work/suite" \
      --bindir="$BIN" --host=127.0.0.1 --port="$2" --user=postgres --dbname=regression --max-connections=10 \
      --schedule=parallel_schedule >"$out/log" 2>&1 || true
  )
  rm -rf "${REGRESS:?}/out/$1"
  mkdir -p "$REGRESS/out"
  cp -r "$out" "$REGRESS/out/$1"
  rm -rf "$out"
}

one_run() { # NAME direct|pgweir
  port=$(free_port)
  echo "running the suite: $1 ..."
  start_cluster "$1" "$port"
  if [[ $2 == pgweir ]]; then start_pgweir "$port"; fi
  run_suite "$1" "$port"
  stop
}

# Tests whose differences docs/conformance.md explains: the first column of its table.
explained() {
  sed -nE 's/^\| `([a-z0-9_.]+)` \|.*/\1/p' "$root/docs/conformance.md"
}

compare() {
  local direct=$REGRESS/out/direct/results through=$REGRESS/out/pgweir/results
  local total=0 same=0 unexplained=0 expected name
  local -a differ=()
  for expected in "$direct"/*.out; do
    [[ -e $expected ]] || fail "the direct run left no outputs, see $REGRESS/out/direct/log"
    name=$(basename "$expected" .out)
    total=$((total + 1))
    if cmp -s "$expected" "$through/$name.out"; then same=$((same + 1)); else differ+=("$name"); fi
  done
  echo "$same of $total outputs identical to the direct run"
  for name in "${differ[@]}"; do
    if explained | grep -qxF "$name"; then
      echo "  $name: differs, explained in docs/conformance.md"
    else
      unexplained=$((unexplained + 1))
      echo "  $name: DIFFERS: diff $direct/$name.out $through/$name.out"
    fi
  done
  [[ $unexplained -eq 0 ]]
}

find_postgres
setup
if [[ ${1:-} == setup ]]; then exit; fi
[[ -x $PGWEIR ]] || fail "no $PGWEIR: run make build, or set PGWEIR"
# Somewhere the server's user can read and write, whatever the rights on this folder's parents.
work=$(mktemp -d "${TMPDIR:-/tmp}/pgweir-conformance.XXXXXX")
chmod 777 "$work"
cp -r "$REGRESS/suite" "$work/suite"
chmod -R a+rwX "$work/suite"
if [[ ${DIRECT:-} != keep ]]; then one_run direct direct; fi
one_run pgweir pgweir
compare
