#!/bin/sh
# Ray names this as its HAProxy binary (RAY_SERVE_HAPROXY_BINARY_PATH): haproxy.py beside it rewrites the configuration
# and becomes HAProxy, with this process' id. -S -E: no packages, quick to start.
exec "$ENCORE_PYTHON" -S -E "$(dirname "$0")/haproxy.py" "$@"
