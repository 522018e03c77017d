#!/usr/bin/env bash
# Builds pgweir twice: first so that it writes down which of its code runs how often, then, after benches/train.py has
# made it work, with that profile (https://doc.rust-lang.org/rustc/profile-guided-optimization.html). The compiler keeps
# what runs together and puts aside what does not, which is what a program needs that is woken for ten thousand
# instructions at a time, with cold caches. The result: target/profiled/release/pgweir.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=$PWD/target/profiling/profile
llvm=$(rustc --version --verbose | sed -nE 's/^LLVM version: ([0-9]+).*/\1/p')
tools=$(rustc --print sysroot)/lib/rustlib/$(rustc --version --verbose | sed -n 's/^host: //p')/bin

find_profdata() {
    for program in "$tools/llvm-profdata" "/usr/lib/llvm-$llvm/bin/llvm-profdata"; do
        if [ -x "$program" ]; then
            echo "$program"
            return
        fi
    done
}

# A profile is read by the LLVM that reads it best: that of the compiler.
if [ -z "$(find_profdata)" ]; then
    (set -x; rustup component add llvm-tools) 2>&1 || true
fi
if [ -z "$(find_profdata)" ] && command -v apt-get > /dev/null; then
    sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
    (set -x; $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "llvm-$llvm") || true
fi
profdata=$(find_profdata)
if [ -z "$profdata" ]; then
    echo "llvm-profdata of LLVM $llvm is missing: rustup component add llvm-tools, or the package llvm-$llvm" >&2
    exit 1
fi

mkdir -p target/profiling
touch target/profiling/begun
RUSTFLAGS="${RUSTFLAGS:-} -Cprofile-generate=$profile" CARGO_TARGET_DIR=target/profiling cargo build --release --locked --bin pgweir
# Build scripts were compiled like that too, and have noted what they did.
rm -rf "$profile"
PGWEIR=$PWD/target/profiling/release/pgweir "${PYTHON:-python3}" benches/train.py
"$profdata" merge -o "$profile/merged" "$profile"/*.profraw
RUSTFLAGS="${RUSTFLAGS:-} -Cprofile-use=$profile/merged" CARGO_TARGET_DIR=target/profiled cargo build --release --locked --bin pgweir
# For `make`: cargo leaves a program alone that comes out the same, and what was edited meanwhile is not in it.
touch -r target/profiling/begun target/profiled/release/pgweir
