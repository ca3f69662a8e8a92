#!/bin/sh
# Ray names this as its HAProxy binary (RAY_SERVE_HAPROXY_BINARY_PATH). Ray 2.60 binds HAProxy's statistics and metrics
# ports to every address; this rewrites those two lines of the generated file to loopback and then becomes HAProxy.
set -eu
previous=
for argument in "$@"; do
    if [ "$previous" = -f ]; then
        sed -i -e 's/^\( *bind \)\*:/\1127.0.0.1:/' -e 's/^\( *bind \):/\1127.0.0.1:/' "$argument"
    fi
    previous=$argument
done
exec "$ENCORE_HAPROXY_BINARY" "$@"
