#!/usr/bin/env bash
# A PgBouncer to compare with that is new enough for prepared statements in transaction mode (1.21), where the machine
# has none: 1.24 from the source package of Debian trixie, made in target/pgbouncer. Does nothing where there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
has=$(PATH=$PATH:/usr/sbin pgbouncer --version 2>/dev/null | sed -n 's/PgBouncer 1\.\([0-9]*\).*/\1/p') || true
[ "${has:-0}" -ge 21 ] || [ -n "${PGBOUNCER:-}" ] || [ -x target/pgbouncer/pgbouncer ] && exit 0
command -v apt-get >/dev/null || { echo "please install PgBouncer 1.21 or newer, or name it in PGBOUNCER" >&2; exit 1; }
sudo=(); [ "$(id -u)" = 0 ] || sudo=(sudo)
missing=()
for package in build-essential pkg-config libevent-dev libssl-dev libc-ares-dev; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
[ ${#missing[@]} = 0 ] || "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
mkdir -p target/pgbouncer && cd target/pgbouncer
mkdir -p parts lists/partial
# The machine's own mirror, with the newer suite's name.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
printf 'Types: deb-src\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: %s\n' "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" "$keyring" >parts/trixie.sources
trixie=(-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$PWD/parts" -o "Dir::State::Lists=$PWD/lists")
"${sudo[@]}" apt-get "${trixie[@]}" update -qq
apt-get "${trixie[@]}" source -qq --download-only pgbouncer 2>/dev/null
mkdir -p source && tar xzf pgbouncer_*.orig.tar.gz --strip-components=1 -C source
(cd source && ./configure --with-cares >configure.log 2>&1 && make -j"$(nproc)" pgbouncer >make.log 2>&1)
cp source/pgbouncer pgbouncer
./pgbouncer --version | head -n 1
