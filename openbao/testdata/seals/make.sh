#!/bin/bash
# Makes what lies here, with a server of its own. Usage: make.sh OPENBAO
#   NAME.snap    a raft snapshot: 1 of 1 key, 3 of 5, the same after a rotation, 2 of 4 keys after a rekey
#   NAME.keys    the unseal keys that belong to it, one a line; rotated.snap has those of 5of3
#   file/        the entries of the seal in file storage, with file.keys
# The servers and their secrets are thrown away.
set -euo pipefail
bao=$(realpath "$1")
cd "$(dirname "$0")"
work=$(mktemp -d)
port=18237
pid=
trap 'kill "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT

call() { curl -sS --fail-with-body -H "X-Vault-Token: ${token-}" "http://127.0.0.1:$port/v1/$1" "${@:2}"; }

start() { # STORAGE SHARES THRESHOLD NAME
	rm -rf "$work/data"
	mkdir "$work/data"
	"$bao" server --path "$work/data" --storage "$1" --listen 127.0.0.1:$port --cluster 127.0.0.1:$((port + 1)) 2>"$work/log" &
	pid=$!
	until call sys/seal-status >/dev/null 2>&1; do sleep 0.2; done
	local init
	init=$(call sys/init -X PUT -d "{\"secret_shares\":$2,\"secret_threshold\":$3}")
	jq -r '.keys_base64[]' <<<"$init" >"$4.keys"
	token=$(jq -r .root_token <<<"$init")
	head -n "$3" "$4.keys" | while read -r key; do
		call sys/unseal -X PUT -d "{\"key\":\"$key\"}" >/dev/null
	done
	until call sys/health >/dev/null 2>&1; do sleep 0.2; done
	call sys/mounts/secret -X POST -d '{"type":"kv","options":{"version":"2"}}'
}

stop() {
	kill "$pid"
	wait "$pid" || true
}

start raft 1 1 1of1
call sys/storage/raft/snapshot >1of1.snap
stop

start raft 5 3 5of3
call sys/storage/raft/snapshot >5of3.snap
call sys/rotate -X PUT
call sys/storage/raft/snapshot >rotated.snap
nonce=$(call sys/rekey/init -X PUT -d '{"secret_shares":4,"secret_threshold":2}' | jq -r .nonce)
head -n 3 5of3.keys | while read -r key; do
	call sys/rekey/update -X PUT -d "{\"key\":\"$key\",\"nonce\":\"$nonce\"}" >"$work/rekey"
done
jq -r '.keys_base64[]' "$work/rekey" >rekeyed.keys
call sys/storage/raft/snapshot >rekeyed.snap
stop

start file 3 2 file
stop
rm -rf file
mkdir -p file/core/hsm
cp "$work/data/core/_keyring" "$work/data/core/_seal-config" file/core/
cp "$work/data/core/hsm/_barrier-unseal-keys" file/core/hsm/
chmod -R u=rwX,go=rX .
