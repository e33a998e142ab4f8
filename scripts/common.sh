# What the scripts share: talking, changing user, and a private server.
# To be sourced, with the project's root as the working directory.
# shellcheck shell=bash

: "${PG_CONFIG:=pg_config}"
export PG_CONFIG

# A PGHOST, PGUSER or PGOPTIONS of the caller's must not lead us elsewhere.
for variable in "${!PG@}"; do
  [[ $variable =~ ^PG(_CONFIG|CTLTIMEOUT|_TEST_TIMEOUT_DEFAULT)$ ]] || unset "$variable"
done
unset variable

# Nor must a caller's make flags (-n, -j) reach the builds that the scripts run.
unset MAKEFLAGS MFLAGS

say() {
  printf '%s\n' "kavach: $*"
}

die() {
  say "$*" >&2
  exit 1
}

as_root() {
  if [[ $EUID -eq 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "root is needed (and there is no sudo) for: $*"
  fi
}

# PostgreSQL refuses to run as root: then it runs as the user postgres, who must
# not depend on root's home, nor on a working directory that only root can enter.
if [[ $EUID -eq 0 ]]; then
  server_user=postgres
else
  server_user=$(id -un)
fi

as_server() {
  if [[ $EUID -eq 0 ]]; then
    runuser -u "$server_user" -- env HOME=/ "$@"
  else
    "$@"
  fi
}

# Where private folders go: $TMPDIR, unless the server's user cannot write there or
# it is too long for a socket's path, which has room for about a hundred characters.
temp_parent() {
  local parent=${TMPDIR:-/tmp}
  if [[ ${#parent} -gt 60 ]] || ! (cd / && as_server test -w "$parent"); then
    parent=/tmp
  fi
  printf '%s\n' "$parent"
}

bindir() {
  "$PG_CONFIG" --bindir
}

# start_server FOLDER [SETTING…]: a server in FOLDER/data that listens on a socket
# in FOLDER alone. Only its user and root can enter FOLDER, so no password is asked.
start_server() {
  local folder=$1 setting
  shift
  (
    cd "$folder" || exit
    as_server "$(bindir)/initdb" -D "$folder/data" -U postgres -A trust -N \
      --no-locale -E UTF8 >/dev/null
    {
      printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$folder'" \
        "shared_preload_libraries = 'kavach'" "timezone = 'UTC'" "fsync = off"
      for setting in "$@"; do
        printf '%s\n' "$setting"
      done
    } | as_server tee -a "$folder/data/postgresql.conf" >/dev/null
    as_server "$(bindir)/pg_ctl" -D "$folder/data" -l "$folder/server.log" -w start \
      >/dev/null </dev/null ||
      die "the private server did not start: $(tail -n 20 "$folder/server.log")"
  )
}

# stop_server FOLDER: nothing happens unless a server answers there, for after a
# crash of the machine the process id in a left-over postmaster.pid may be another's.
stop_server() {
  local folder=$1
  (
    cd / || exit
    if as_server "$(bindir)/pg_isready" -q -h "$folder"; then
      as_server "$(bindir)/pg_ctl" -D "$folder/data" -m fast -w stop >/dev/null
    fi
  )
}

# wait_until SECONDS COMMAND…: polls until COMMAND succeeds; false where it does not in that time.
wait_until() {
  local tries
  for ((tries = 0; tries < $1 * 10; tries++)); do
    "${@:2}" && return
    sleep 0.1
  done
  return 1
}
