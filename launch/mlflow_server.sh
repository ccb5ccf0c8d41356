#!/usr/bin/env bash
# An MLflow server for sweeps on several machines, or for a group: one lab book
# and one model registry for all.
#
#   bash launch/mlflow_server.sh [OPTIONS] [-- OPTIONS OF mlflow server]
#
#   --backend URI     where runs are kept: sqlite:////absolute/path/mlflow.db
#                     (default: FOLDER/mlflow.db) or
#                     postgresql://USER:PASSWORD@HOST/DATABASE (needs
#                     psycopg2-binary). With a password better as the variable
#                     MLFLOW_BACKEND_STORE_URI, which no list of processes shows
#   --artifacts ROOT  where files are kept: a folder (default: FOLDER/artifacts)
#                     or s3://BUCKET/PATH (needs boto3 and AWS_*)
#   --folder FOLDER   of what has no place of its own (default:
#                     outputs/mlflow-server)
#   --host HOST       address to listen on (default: 127.0.0.1, this machine
#                     alone)
#   --port PORT       (default: 5000)
#   --auth            ask for user and password. MLFLOW_AUTH_ADMIN_PASSWORD is
#                     the password of the user "admin" at the very first start;
#                     users are added as MLflow's documentation says. A user may
#                     enter runs everywhere.
#   --python PYTHON   a Python that has this project's packages (default: the
#                     project's .venv, made if missing)
#   --open            listen on another address than loopback without --auth:
#                     whoever reaches the port reads and changes all
#
# Clients: --tracking-uri http://HOST:PORT, and with --auth
# MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. One worker process:
# several that open a fresh database at once can spoil it, and one serves
# hundreds of trials.
set -euo pipefail
here="$PWD"
help="$(sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}")"
refuse() {
    echo "error: $1" >&2
    exit 2
}

backend="${MLFLOW_BACKEND_STORE_URI:-}" artifacts="" folder="" python="" host="127.0.0.1" port="5000" auth=false open=false
while [ $# -gt 0 ]; do
    case "$1" in
        --backend | --artifacts | --folder | --host | --port | --python)
            [ $# -ge 2 ] || refuse "$1 needs a value (--help tells more)"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        --auth) auth=true && shift ;;
        --open) open=true && shift ;;
        --help | -h) echo "$help" && exit 0 ;;
        --) shift && break ;;
        *) refuse "$1: no such option (--help lists them)" ;;
    esac
done

case "$host" in
    127.* | localhost | ::1) ;;
    *) $auth || $open || refuse "--host $host: others could read and change everything; add --auth, or --open if that is meant" ;;
esac
case "$backend" in
    "" | sqlite:///* | postgresql://* | postgresql+*://*) ;;
    *) refuse "--backend $backend: allowed are sqlite:////absolute/path/mlflow.db and postgresql://USER:PASSWORD@HOST/DATABASE" ;;
esac
if $auth && [ -z "${MLFLOW_AUTH_ADMIN_PASSWORD:-}" ] && [ ! -e "${folder:-outputs/mlflow-server}/auth.db" ]; then
    refuse "--auth: the first start needs MLFLOW_AUTH_ADMIN_PASSWORD, the password of the user 'admin' (12 characters or more)"
fi

if [ -z "$python" ]; then
    source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
    cd "$here"
fi
needs() { # module, package, what for
    "$python" -c "import $1" 2>/dev/null || refuse "$3 needs the package $2: $(printf %q "$python") -m pip install $2"
}
case "$backend" in
    postgresql://*) # SQLAlchemy's own choice of a driver changed between its versions
        needs psycopg2 psycopg2-binary "a PostgreSQL backend"
        backend="postgresql+psycopg2://${backend#postgresql://}"
        ;;
esac
case "$artifacts" in s3://*) needs boto3 boto3 "an S3 root of artifacts" ;; esac

folder="${folder:-outputs/mlflow-server}"
mkdir -p "$folder" || refuse "--folder $folder: cannot be made; choose another folder"
folder="$(cd "$folder" && pwd)"
backend="${backend:-sqlite:///$folder/mlflow.db}"
case "${artifacts:=$folder/artifacts}" in /* | *://*) ;; *) artifacts="$here/$artifacts" ;; esac

export MLFLOW_BACKEND_STORE_URI="$backend" MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
unset MLFLOW_TRACKING_URI
options=(--artifacts-destination "$artifacts" --host "$host" --port "$port" --workers 1)
if $auth; then
    needs flask_wtf flask-wtf "--auth"
    [ -e "$folder/secret" ] || (umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32))' >"$folder/secret")
    printf '[mlflow]\ndefault_permission = EDIT\ndatabase_uri = sqlite:///%s/auth.db\nadmin_username = admin\n' "$folder" \
        >"$folder/auth.ini"
    MLFLOW_FLASK_SERVER_SECRET_KEY="$(cat "$folder/secret")"
    export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH="$folder/auth.ini"
    options+=(--app-name basic-auth)
fi
printf '%s\n' "MLflow on http://$host:$port, runs in ${backend%%:*}, files in" "  $artifacts" \
    "Sweeps: --tracking-uri http://$host:$port" >&2
cd "$folder"
exec "$python" -m mlflow server "${options[@]}" "$@"
