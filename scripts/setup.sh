#!/bin/bash
# Installs through apt what building, testing and showing kavach needs and this
# machine lacks; with the argument lint or valgrind what that target of make needs
# besides. Where nothing is missing it does nothing at all. PostgreSQL clusters that
# are already there are left alone.
#
# With the argument clients also what some tests try kavach with: a pooler and the
# drivers of other languages. These are optional: what cannot be installed is
# named, and its tests skip.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

# The PostgreSQL to build against has its server headers installed. PGXS alone does
# not tell: Debian has it in the client's package.
have_headers() {
  local pgxs includes
  pgxs=$("$PG_CONFIG" --pgxs 2>/dev/null) && [[ -f $pgxs ]] &&
    includes=$("$PG_CONFIG" --includedir-server) && [[ -f $includes/postgres.h ]]
}

# A compiler without the C library's headers is not enough either.
have_compiler() {
  gcc -E - >/dev/null 2>&1 <<<'#include <stdio.h>'
}

# The major version to install: that of $PG_CONFIG where a package of the distribution
# has brought it (a client's is enough), else that of the newest server here, else the
# one that the distribution calls its default.
major_version() {
  local bin
  if have_headers; then
    "$PG_CONFIG" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/'
  elif bin=$("$PG_CONFIG" --bindir 2>/dev/null) && [[ $bin =~ ^/usr/lib/postgresql/([0-9]+)/bin$ ]]; then
    printf '%s\n' "${BASH_REMATCH[1]}"
  elif bin=$(printf '%s\n' /usr/lib/postgresql/*/bin/postgres | sort -V | tail -n 1) && [[ -x $bin ]]; then
    cut -d / -f 5 <<<"$bin"
  else
    apt-cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p' | head -n 1
  fi
}

# Prints the packages that are missing, NN standing for the major version.
missing() {
  have_compiler || echo gcc libc6-dev
  command -v make >/dev/null || echo make
  if ! have_headers; then
    echo postgresql-NN postgresql-server-dev-NN postgresql-NN-pgtap
  else
    [[ -x $("$PG_CONFIG" --bindir)/initdb ]] || echo postgresql-NN
    [[ -f $("$PG_CONFIG" --sharedir)/extension/pgtap.control ]] || echo postgresql-NN-pgtap
  fi
  command -v prove >/dev/null || echo perl
  command -v pg_prove >/dev/null || echo libtap-parser-sourcehandler-pgtap-perl
  perl -MIPC::Run -e 1 2>/dev/null || echo libipc-run-perl
  [[ $purpose != valgrind ]] || command -v valgrind >/dev/null || echo valgrind libc6-dbg
}

missing_for_lint() {
  local package
  for package in clang clang-tidy shellcheck; do
    command -v $package >/dev/null || echo $package
  done
  command -v pg_bsd_indent >/dev/null || echo pg-bsd-indent
  # for a server of the distribution's; test/lint/run does without it on others
  if ! have_headers || [[ $("$PG_CONFIG" --bindir) == /usr/lib/postgresql/* &&
    ! -f $("$PG_CONFIG" --sharedir)/extension/plpgsql_check.control ]]; then
    echo postgresql-NN-plpgsql-check
  fi
}

all_missing() {
  {
    missing
    [[ $purpose != lint ]] || missing_for_lint
  } | tr '\n' ' '
}

# install_packages PACKAGE…: through apt, NN replaced with the major version. What is
# installed already is not upgraded: with a server's package its clusters would restart.
install_packages() {
  local major packages
  command -v apt-get >/dev/null ||
    die "missing, and there is no apt-get to install it with: $*"
  say "some packages are missing; updating apt's lists"
  apt_get update -q || say "that failed; going on with the lists at hand"
  major=$(major_version)
  [[ -n $major ]] || die "apt knows no package postgresql"
  read -ra packages <<<"${*//NN/$major}"
  packages=("${packages[@]/%"server-dev-$major"/"$(headers_package "$major")"}")
  say "installing through apt: ${packages[*]}"
  # Otherwise apt upgrades all that comes from the same source as what is new.
  apt_get install -q -y --no-install-recommends --no-upgrade \
    -o APT::Get::Upgrade-By-Source-Package=false "${packages[@]}"
}

# headers_package MAJOR: server-dev-MAJOR, in the version of the server that is
# installed. Where apt does not have that any more it is the newest: what is compiled
# with it runs on every server of the same major version.
headers_package() {
  local version
  version=$(dpkg-query -W -f '${Version}' "postgresql-$1" 2>/dev/null) || true
  if [[ -z $version ]]; then
    printf '%s\n' "server-dev-$1"
  elif apt-cache madison "postgresql-server-dev-$1" | cut -d '|' -f 2 | grep -qxF " $version "; then
    printf '%s\n' "server-dev-$1=$version"
  else
    say "apt does not have the headers of the installed server, $version: taking its newest" >&2
    printf '%s\n' "server-dev-$1"
  fi
}

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@" </dev/null
}

purpose=${1:-}
read -ra packages <<<"$(all_missing)"
if [[ ${#packages[@]} -gt 0 ]]; then
  install_packages "${packages[@]}"
  read -ra packages <<<"$(all_missing)"
  [[ ${#packages[@]} -eq 0 ]] ||
    die "still missing after the installation, for $PG_CONFIG: ${packages[*]//NN/$(major_version)}"
fi

# Prints the packages of the clients that are missing. They are looked for where the
# tests look (test/t/*.pl).
missing_clients() {
  local module
  PATH=$PATH:/usr/sbin command -v pgbouncer >/dev/null || echo pgbouncer
  for module in psycopg psycopg2; do
    python3 -c "import $module" 2>/dev/null || /usr/bin/python3 -c "import $module" 2>/dev/null || echo "python3-$module"
  done
  NODE_PATH=/usr/share/nodejs:/usr/lib/node_modules:/usr/local/lib/node_modules \
    node -e "require('pg')" 2>/dev/null || echo node-pg
}

install_clients() {
  local client
  # Not worth asking for a password.
  [[ $EUID -eq 0 ]] || sudo -n true 2>/dev/null || return 0
  for client in $(missing_clients); do
    apt-cache show "$client" >/dev/null 2>&1 || apt_get update -q >/dev/null 2>&1 || true
    say "installing a client for the tests: $client"
    (apt_get install -q -y --no-install-recommends "$client") >/dev/null 2>&1 ||
      say "that failed; the tests with $client skip"
  done
}

[[ $purpose != clients ]] || install_clients
