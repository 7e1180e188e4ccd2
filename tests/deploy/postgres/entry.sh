#!/bin/bash
# What the official image's entry does, as far as the tests need it.
set -euo pipefail
export LC_ALL=C
data=/var/lib/postgresql/data
if [ ! -e "$data/PG_VERSION" ]; then
  initdb -D "$data" -U "${POSTGRES_USER:-postgres}" --pwfile=<(echo "${POSTGRES_PASSWORD:?}") \
    --auth=scram-sha-256 --encoding=UTF8 --no-locale --no-sync >/dev/null
  echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
  echo "CREATE DATABASE ${POSTGRES_DB:-postgres}" | postgres --single -D "$data" postgres >/dev/null || true
fi
exec postgres -D "$data" -c 'listen_addresses=*' -c unix_socket_directories=/tmp -c fsync=off
